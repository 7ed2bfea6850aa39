"""In what runs differ: the words behind names that are alike."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


def flat(nested: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The leaves of a nested configuration by their full names, `workload.size`."""
    leaves: dict[str, Any] = {}
    for name, part in nested.items():
        leaves |= flat(part, f"{path}{name}.") if isinstance(part, Mapping) else {path + name: part}
    return leaves


def differences(settings: Sequence[Mapping[str, Any]], absent: bool = False) -> list[dict[str, Any]]:
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


def _token(value: Any) -> str:
    """The same text for equal values, whole numbers of either type included."""
    return repr(float(value)) if isinstance(value, int) else repr(value)
