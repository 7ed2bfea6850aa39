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
BLOCKS = (
    *("config", "environment", "data", "weights", "parameters", "memory", "time"),
    *("quality", "checks", "overhead", "step"),
)
TEXTS = dict.fromkeys(("optimizer", "workload"), "?")
RESULT, STEPS, CONFIG, LOG = "result.json", "steps.jsonl", "config.yaml", "log.txt"
PART, OLD = ".part", ".old"
REPORT = "report"  # the folder of a report, beside the runs: no sweep's name


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
        """The lines of steps.jsonl; what is not a step, as a torn last line of a run that was killed, is left out."""
        path = self.folder / STEPS
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        return [line for line in map(_parsed, lines) if isinstance(line, dict) and "step" in line]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def read_records(root: Path) -> list[Record]:
    """Every record under `root`, by name; one that cannot be read, or has no result, counts as interrupted."""
    folders = {path.parent for name in (RESULT, CONFIG) for path in root.glob(f"**/{name}")}
    return [Record(folder, _result_of(folder)) for folder in sorted(folders) if folder.suffix != OLD]


def _result_of(folder: Path) -> dict[str, Any]:
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return _unfinished(folder, "no result yet: it is running, or bench.py was killed")
    except ValueError:
        return _unfinished(folder, f"{RESULT} cannot be read: it is not JSON")
    problem = _problem(result)
    return _unfinished(folder, f"{RESULT} cannot be read: {problem}") if problem else TEXTS | result


def _problem(result: Any) -> str | None:
    """Why this is no record of ours, or None."""
    if not isinstance(result, dict):
        return "it is no object"
    if result.get("schema", SCHEMA) != SCHEMA:
        return f"its schema is {result['schema']!r}, this version reads {SCHEMA}"
    if result.get("status") not in STATUSES:
        return f"its status is {result.get('status')!r}"
    wrong = [name for name in BLOCKS if not isinstance(result.get(name), dict | None)]
    wrong += [name for name in TEXTS if not isinstance(result.get(name, ""), str)]
    wrong += [] if isinstance(result.get("seed"), int | None) else ["seed"]
    wrong += ["config.optimizer, config.workload"] if not _names_parts(result.get("config")) else []
    return f"{wrong[0]} is not what it should be" if wrong else None


def _names_parts(config: Any) -> bool:
    return not config or all(isinstance(config.get(part), dict) for part in ("optimizer", "workload"))


def _unfinished(folder: Path, reason: str) -> dict[str, Any]:
    """What can be said of a run without a result: what its configuration says."""
    import yaml

    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        config = None
    known: dict[str, Any] = config if isinstance(config, dict) else {}
    optimizer, _, rest = folder.name.removesuffix(PART).partition("-")
    names = {"optimizer": optimizer, "workload": rest} | (known.get("choices") or {})
    measure = (known.get("measure") or {}).get("kind")
    return (
        {"schema": SCHEMA, "status": "interrupted", "reason": reason, "seed": known.get("seed"), "measure": measure}
        | {part: str(names[part]) for part in ("optimizer", "workload")}
        | {"config": known if _names_parts(known) else {}}
    )


class Place:
    """Where one run is kept: `<sweep>/<run>`, made in `<sweep>/<run>.part`."""

    def __init__(self, sweep: Path, run: str) -> None:
        self.sweep, self.folder = sweep, sweep / run
        self.part, self.old = sweep / (run + PART), sweep / (run + OLD)

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
            self._recover()
            yield True

    def _recover(self) -> None:
        """Finish what was killed between the two renames of a commit."""
        if not self.folder.exists() and (self.part / RESULT).exists():
            self.part.rename(self.folder)
        elif not self.folder.exists() and self.old.exists():
            self.old.rename(self.folder)
        shutil.rmtree(self.old, ignore_errors=True)

    def begin(self, config_yaml: str) -> None:
        """Start afresh; what a killed run left behind goes."""
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)
        (self.part / CONFIG).write_text(config_yaml, encoding="utf-8")

    def commit(self, result: dict[str, Any]) -> None:
        """Write result.json and put the folder in its place; an older record there is replaced whole."""
        write_atomically(self.part / RESULT, to_json(result))
        shutil.rmtree(self.old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(self.old)
        self.part.rename(self.folder)
        shutil.rmtree(self.old, ignore_errors=True)


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


def in_short(error: Exception) -> str:
    """What went wrong, in a line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
