"""What settings and groups are called: as little as tells them apart."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from optimeter.measure.records.naming import differences

LONGEST = 24  # characters of a value in a label
IN_EVERY_LABEL = ("workload_name", "workload.size", "workload.steps", "steps", "device")


def describe_weights(conditions: Mapping[str, Any]) -> str:
    """The first weights for a label: `random weights, base 0a1b2c3d`, `cache weights org/name@0a1b2c3`."""
    if "weights.source" not in conditions:
        return ""
    source = f"{conditions['weights.source']} weights"
    if "weights.repository" in conditions:
        return f"{source} {conditions['weights.repository']}@{str(conditions['weights.revision'])[:7]}"
    if "weights.base_sha256" in conditions:
        return f"{source}, base {conditions['weights.base_sha256'][:8]}"
    return source


def labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """For the conditions of each setting the workload and its size, and what tells it from others of that workload."""
    by_workload: dict[str, list[int]] = defaultdict(list)
    for index, conditions in enumerate(settings):
        by_workload[conditions["workload_name"]].append(index)
    label_of: dict[int, str] = {}
    for indices in by_workload.values():
        names = {name for index in indices for name in settings[index]}
        whole = [{name: settings[index].get(name) for name in sorted(names)} for index in indices]
        for index, differing in zip(indices, differences(whole), strict=True):
            label_of[index] = _label(settings[index], differing)
    repeated = Counter(label_of.values())
    return [
        f"{label_of[index]} #{digest(conditions)}" if repeated[label_of[index]] > 1 else label_of[index]
        for index, conditions in enumerate(settings)
    ]


def _label(conditions: Mapping[str, Any], differing: Mapping[str, Any]) -> str:
    workload = " ".join(map(str, filter(None, (conditions["workload_name"], conditions.get("workload.size")))))
    parts = [
        workload,
        f"{conditions.get('steps') or 0:,} steps",
        str(conditions["device"]),
        describe_weights(conditions),
    ]
    for name, value in differing.items():
        if name not in IN_EVERY_LABEL and not name.startswith("weights."):
            parts.append(f"{name.removeprefix('workload.')}={shortened(value, whole=name == 'machine')}")
    return ", ".join(filter(None, parts))


def digest(value: Any) -> str:
    """A few letters that tell it from others."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]


def shortened(value: Any, whole: bool = False) -> str:
    """A value in a label."""
    text = "null" if value is None else str(value)
    if isinstance(value, list):
        text = ",".join(map(str, value))
    return text if whole or len(text) <= LONGEST else text[: LONGEST // 2] + "…"


def name_with(name: str, differing: Mapping[str, Any]) -> str:
    """A name with the arguments that tell it from others of that name: `adamw (lr=0.01)`."""
    arguments = ", ".join(f"{argument}={shortened(value)}" for argument, value in differing.items())
    return f"{name} ({arguments})" if arguments else name
