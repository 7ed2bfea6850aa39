"""Weights that others trained, from the Hugging Face cache or hub: never in place of something else, never silently."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCES = ("random", "cache", "hub")
HUB_SECONDS = 40  # until the hub must have answered; a name server that is away blocks longer than any time-out


@dataclass
class Checkpoint:
    """Where a workload's weights come from: "random", or a `repository` in the "cache" or on the "hub".

    `marker` is a file that the repository must have; `wanted` says in an error what was asked for. Errors are one
    line each, with the fix.
    """

    source: str
    repository: str | None
    revision: str | None
    marker: str
    wanted: str
    _commit: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.source != "random" and self.repository is None:
            raise ValueError(
                f"workload.weights={self.source}: there are no published weights of {self.wanted}; "
                "name a workload.repository that has some, or take weights=random"
            )

    @property
    def commit(self) -> str:
        """The exact revision, a commit of the repository."""
        if self._commit is None:
            self._commit = self._cached_commit() if self.source == "cache" else self._hub_commit()
        return self._commit

    def _cached_commit(self) -> str:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(str(self.repository), self.marker, revision=self.revision)
        if not isinstance(path, str):
            raise FileNotFoundError(self._missing("is not in the Hugging Face cache"))
        parts = Path(path).parts
        return parts[parts.index("snapshots") + 1]

    def _hub_commit(self) -> str:
        """What the hub says the revision is, asked in a thread so that no name server can make us wait."""
        from huggingface_hub import HfApi

        answers: list[str] = []
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                found = HfApi().model_info(str(self.repository), revision=self.revision, timeout=HUB_SECONDS / 4)
                answers.append(str(found.sha))
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(HUB_SECONDS)
        if answers:
            return answers[0]
        reason = _first_line(failures[0]) if failures else f"no answer in {HUB_SECONDS} s"
        raise ConnectionError(
            f"weights=hub: {self.repository} cannot be had from the Hugging Face hub ({reason}); "
            "take workload.weights=cache where it was loaded before, or random"
        )

    def load(self, cls: Any, **arguments: Any) -> Any:
        """``cls.from_pretrained`` of this checkpoint: safetensors alone, no code of the repository's."""
        arguments |= {"revision": self.commit, "local_files_only": self.source == "cache"}
        try:
            return cls.from_pretrained(self.repository, **arguments)
        except (OSError, ValueError) as error:
            reason = _first_line(error)
            raise FileNotFoundError(self._missing(f"is not whole ({cls.__name__}: {reason})")) from error

    def _missing(self, what: str) -> str:
        from huggingface_hub.constants import HF_HUB_CACHE

        at = f" at {self.revision}" if self.revision else ""
        return (
            f"weights={self.source}: {self.repository}{at} {what}, {HF_HUB_CACHE}; "
            f"run `hf download {self.repository}` where there is a network, or take workload.weights=random"
        )

    def provenance(self) -> dict[str, Any]:
        """What the record says of the weights."""
        if self.source == "random":
            return {"source": self.source}
        return {"source": self.source, "repository": self.repository, "revision": self._commit}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
