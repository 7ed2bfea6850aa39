"""What runs, their files and the keys of their configurations are called."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from optimeter.measure.records.fields import JSON

RESULT, STEPS, CONFIG, LOG = "result.json", "steps.jsonl", "config.yaml", "log.txt"
PART, OLD = ".part", ".old"
REPORT = "report"  # the folder of a report, beside the runs: no sweep's name
LONGEST = 60  # characters of a folder's name
# What of a configuration does not make another run: where it is kept, how it is guarded, what it is called.
VOLATILE = ("name", "runs_dir", "rerun", "limit_seconds", "baseline", "dry", "replay", "choices")


def run_id(identity: object) -> str:
    """A run's id: 12 hex digits of the SHA-256 of everything that distinguishes it from other runs."""
    text = json.dumps(identity, sort_keys=True, allow_nan=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def slug(name: str) -> str:
    """`name` as a folder: letters, digits, `.`, `_`, `-`, at most 60; a changed name carries a hash of the true one."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if plain == name and len(name) <= LONGEST:
        return name
    return f"{plain[:51]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


def flat(nested: Mapping[str, object], path: str = "") -> dict[str, JSON]:
    """The leaves of a nested configuration by their full names, `workload.size`."""
    leaves: dict[str, JSON] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{path}{name}.")
        else:
            leaves[f"{path}{name}"] = value
    return leaves


def differences(settings: Sequence[Mapping[str, object]], absent: bool = False) -> list[dict[str, JSON]]:
    """For each setting its entries whose value another setting has differently, in the setting's own order.

    With `absent`, a setting without an entry has it as None; else it does not count as different.
    """
    values: dict[str, set[str]] = defaultdict(set)
    holders: dict[str, int] = defaultdict(int)
    for setting in settings:
        for name, value in setting.items():
            values[name].add(_token(value))
            holders[name] += 1
    if absent:
        for name in values:
            values[name] |= {_token(None)} if holders[name] < len(settings) else set()
    return [{name: value for name, value in setting.items() if len(values[name]) > 1} for setting in settings]


def _token(value: object) -> str:
    """The same text for equal values, whole numbers of either type included."""
    return repr(float(value)) if isinstance(value, int) else repr(value)
