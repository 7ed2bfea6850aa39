"""Which records belong together: a setting is what must be equal to compare, a group one optimizer's seeds in it."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from measure.record import VOLATILE, Record

# What two compared runs may differ in: it changes neither the problem nor the training.
FREE = (*VOLATILE, "optimizer", "seed", "eval_every", "record_every", "measure")
FREE_OF_WORKLOAD = ("sparse", "eval_every", "target", "_target_", "_convert_", "about")
COMPARED = "train"


@dataclass(frozen=True)
class Group:
    """The runs of one optimizer in one setting, by seed."""

    label: str
    records: tuple[Record, ...]

    @property
    def ok(self) -> list[Record]:
        """The runs that came to their end."""
        return [record for record in self.records if record.result["status"] == "ok"]

    def median(self, *path: str) -> float | None:
        """The median over the finished runs of a number in their results."""
        values = [value for record in self.ok if (value := at(record.result, *path)) is not None]
        return median(values) if values else None

    def status(self) -> str:
        """`ok`, or each status with how many runs came to it."""
        counts: dict[str, int] = defaultdict(int)
        for record in self.records:
            counts[record.result["status"]] += 1
        if len(counts) == 1 and len(self.records) == 1:
            return next(iter(counts))
        return ", ".join(f"{status} {count}/{len(self.records)}" for status, count in sorted(counts.items()))


@dataclass(frozen=True)
class Setting:
    """One problem under one set of conditions, and the groups that can be compared in it."""

    label: str
    groups: tuple[Group, ...]
    baseline: Group | None

    @property
    def records(self) -> list[Record]:
        return [record for group in self.groups for record in group.records]


def at(result: dict[str, Any], *path: str) -> Any:
    """What stands at a path of keys, or None."""
    value: Any = result
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def settings(records: Iterable[Record]) -> list[Setting]:
    """The settings of all training runs, in the order of their workloads' names."""
    kept: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if at(record.result, "measure") == COMPARED and at(record.result, "config"):
            kept[json.dumps(conditions(record), sort_keys=True)].append(record)
    keys = {key: json.loads(key) for key in kept}
    labels = {key: setting_label(keys[key], list(keys.values())) for key in keys}
    return [_setting(labels[key], kept[key]) for key in sorted(kept, key=lambda key: labels[key])]


def conditions(record: Record) -> dict[str, Any]:
    """What must be equal for two runs to be compared: problem, schedule, data, device and versions of the machine."""
    result, config = record.result, record.result["config"]
    workload = {key: value for key, value in config["workload"].items() if key not in FREE_OF_WORKLOAD}
    fixed = {key: value for key, value in config.items() if key not in FREE and key != "workload"}
    environment = result["environment"]
    machine = at(environment, "gpu", "name") or at(environment, "cpu", "model")
    return fixed | {
        "workload": workload,
        "workload_name": result["workload"],
        "device": result["device"],
        "machine": machine,
        "torch": at(environment, "packages", "torch"),
        "data": result["data"],
    }


def setting_label(own: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    """The workload and its size, and whatever tells this setting from others of the same workload."""
    size = own["workload"].get("size")
    parts = [" ".join(filter(None, (own["workload_name"], size))), f"{own['steps']:,} steps", own["device"]]
    alike = [other for other in others if other["workload_name"] == own["workload_name"]]
    for key, value in sorted(_flat(own).items()):
        if key not in ("steps", "workload.steps", "workload.size", "device") and any(
            _flat(other).get(key) != value for other in alike
        ):
            parts.append(f"{key.removeprefix('workload.')}={_short(value)}")
    return ", ".join(parts)


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, part in value.items():
        flat |= _flat(part, f"{prefix}{key}.") if isinstance(part, dict) else {prefix + key: part}
    return flat


def _short(value: Any) -> str:
    text = "×".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 24 else text[:12] + "…"


def newest(records: Iterable[Record]) -> list[Record]:
    """Of runs with one configuration, made before and after an edit of the code, the last."""
    latest: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: record.result.get("finished") or ""):
        config = {key: value for key, value in record.result["config"].items() if key not in VOLATILE}
        latest[json.dumps([record.result["optimizer"], config], sort_keys=True)] = record
    return list(latest.values())


def _setting(label: str, records: list[Record]) -> Setting:
    """Split by optimizer and its arguments; where one name has several, the label says in what they differ."""
    by_arguments: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in newest(records):
        config = record.result["config"]
        spec = {key: value for key, value in config["optimizer"].items() if key != "about"}
        spec |= {"sparse": config["workload"]["sparse"]} if "sparse" in config["workload"] else {}
        by_arguments[record.result["optimizer"], json.dumps(spec, sort_keys=True)].append(record)
    groups = []
    for (name, arguments), members in by_arguments.items():
        same_name = [json.loads(other) for known, other in by_arguments if known == name]
        own = json.loads(arguments)
        differing = [key for key in own if any(other.get(key) != own[key] for other in same_name)]
        differences = ", ".join(f"{key}={_short(own[key])}" for key in differing)
        members.sort(key=lambda record: record.result["seed"])
        groups.append(Group(f"{name} ({differences})" if differences else name, tuple(members)))
    groups.sort(key=lambda group: group.label)
    wanted = records[0].result["config"].get("baseline")
    candidates = [group for group in groups if group.records[0].result["optimizer"] == wanted and group.ok]
    return Setting(label, tuple(groups), candidates[0] if len(candidates) == 1 else None)
