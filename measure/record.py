"""The record of a run: one folder with config.yaml, steps.jsonl, log.txt and, last, result.json.

A run is written in ``<run>.part`` and renamed when it is whole, so that a folder without the suffix never changes
and killing anything at any moment leaves either a whole record or a part that the next start replaces.
"""

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
STATUSES = ("ok", "diverged", "oom", "timeout", "crashed", "error", "unsupported", "interrupted")
FINISHED = ("ok", "diverged", "unsupported")  # kept when the same command is given again
FAILED = ("error", "crashed", "oom", "timeout")
# What of a configuration does not make another run: where it is kept, how it is guarded, what it is called.
VOLATILE = ("name", "runs_dir", "rerun", "limit_seconds", "baseline", "dry", "replay", "choices")
RESULT, STEPS, CONFIG, LOG = "result.json", "steps.jsonl", "config.yaml", "log.txt"
PART = ".part"


@dataclass
class Record:
    """A run that was read back. `result` has the schema of design §3; an unfinished run has a minimal one."""

    folder: Path
    result: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The folder's name, unique in its sweep."""
        return self.folder.name

    def steps(self) -> list[dict[str, Any]]:
        """The lines of steps.jsonl; a torn last one, from a run that was killed, is left out."""
        path = self.folder / STEPS
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [line for line in map(_parsed, lines) if line is not None]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return json.loads(text)
    except ValueError:
        return None


def read_records(root: Path) -> list[Record]:
    """Every record under `root`, by name; runs without a result count as interrupted."""
    folders = sorted({path.parent for name in (RESULT, CONFIG) for path in root.glob(f"**/{name}")})
    return [Record(folder, _result_of(folder)) for folder in folders]


def _result_of(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        reason = "no result yet: it is running, or bench.py was killed"
    except ValueError:
        reason = "result.json cannot be read"
    optimizer, _, rest = folder.name.removesuffix(PART).partition("-")
    return {"schema": SCHEMA, "status": "interrupted", "reason": reason, "optimizer": optimizer, "workload": rest}


class Place:
    """Where one run is kept: `<sweep>/<run>`, made in `<sweep>/<run>.part`."""

    def __init__(self, sweep: Path, run: str) -> None:
        self.sweep, self.folder, self.part = sweep, sweep / run, sweep / (run + PART)

    def finished(self) -> dict[str, Any] | None:
        """The result of a finished run, or None."""
        if not (self.folder / RESULT).exists():
            return None
        result = _result_of(self.folder)
        return result if result["status"] in FINISHED else None

    @contextmanager
    def lock(self, wait: bool) -> Iterator[bool]:
        """Hold the run against other parents; gives False where another has it and `wait` is not set."""
        locks = self.sweep / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with open(locks / self.folder.name, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def begin(self, config_yaml: str) -> None:
        """Start afresh; what a killed run left behind goes."""
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)
        (self.part / CONFIG).write_text(config_yaml, encoding="utf-8")

    def commit(self, result: dict[str, Any]) -> None:
        """Write result.json and put the folder in its place; an older record there is replaced whole."""
        write_atomically(self.part / RESULT, to_json(result))
        old = self.folder.with_name(self.folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        self.part.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one, whatever happens."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def to_json(value: dict[str, Any]) -> str:
    """JSON without NaN: what is not finite becomes null, and its path stands under "missing" with the reason."""
    missing = dict(value.get("missing") or {})
    clean = _finite(value, "", missing)
    return json.dumps(clean | {"missing": missing}, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value: Any, path: str, missing: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part, f"{path}.{key}".lstrip("."), missing) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part, f"{path}[{index}]", missing) for index, part in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        missing[path] = f"not finite: {value}"
        return None
    return value


def to_line(line: dict[str, Any]) -> str:
    """One line of steps.jsonl; what is not finite is null and named under "not_finite"."""
    missing: dict[str, str] = {}
    clean = _finite(line, "", missing)
    return json.dumps(clean | ({"not_finite": sorted(missing)} if missing else {}), allow_nan=False) + "\n"


def run_id(identity: Any) -> str:
    """The first 12 hex digits of the SHA-256 of what makes two runs the same run."""
    text = json.dumps(identity, sort_keys=True, allow_nan=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def slug(name: str) -> str:
    """`name` as a folder: letters, digits, `.`, `_`, `-`, at most 60; a changed name carries a hash of the true one."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if plain == name and len(name) <= 60:
        return name
    return f"{plain[:51]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")
