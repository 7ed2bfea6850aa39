"""Which records belong together: a setting is what must be equal to compare, a group one optimizer's seeds in it."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from optimeter.measure.records.fields import Block
from optimeter.measure.records.record import VOLATILE, Record, flat

# What two compared runs may differ in: it changes neither the problem nor the training.
FREE = (*VOLATILE, "optimizer", "seed", "eval_every", "record_every", "measure")
FREE_OF_WORKLOAD = ("sparse", "eval_every", "target", "_target_", "_convert_", "about")
MACHINE = ("machine", "threads", "torch", "weights.base_sha256")  # of the conditions: what two machines differ in
COMPARED = "train"
VERSION = "package version"
LONGEST = 24  # characters of a value in a label

# What must be true of an honest run, and what it means where it is not.
CHECKS = {
    "parameters_moved": "a parameter that should train never moved",
    "frozen_unchanged": "a frozen parameter moved",
    "finite": "a parameter is not finite",
    "baseline_sound": "the baseline's parameters did not move, or are not finite",
}


@dataclass(frozen=True)
class Group:
    """The runs of one optimizer in one setting, by seed; `key` is the same wherever name and arguments are."""

    label: str
    key: str
    records: tuple[Record, ...]

    @property
    def ok(self) -> list[Record]:
        """The runs that came to their end."""
        return [record for record in self.records if record.result["status"] == "ok"]

    @property
    def sound(self) -> bool:
        """Whether every run came to its end and passed its checks: what is not is shown, and never called the best."""
        return len(self.ok) == len(self.records) and not any(map(doubts, self.ok))

    def median(self, *path: str) -> float | None:
        """The median over the finished runs of a number in their results."""
        values = [value for record in self.ok if (value := at(record.result, *path)) is not None]
        return median(values) if values else None

    def status(self) -> str:
        """`ok`, or each status with how many runs came to it, and whatever is doubtful about them."""
        counts = Counter(record.result["status"] for record in self.records)
        of = f"/{len(self.records)}" if len(self.records) > 1 else ""
        words = [f"{status} {count}{of}" if of else status for status, count in sorted(counts.items())]
        found = {doubt: None for record in self.ok for doubt in doubts(record)}
        return ", ".join(words) + "".join(f"; INVALID: {doubt}" for doubt in found)


@dataclass(frozen=True)
class Setting:
    """One problem under one set of conditions, and the groups that can be compared in it."""

    label: str
    conditions: dict[str, Any]
    groups: tuple[Group, ...]
    baseline: Group | None
    wanted: str | None  # the baseline's name, whether or not it is there

    @property
    def records(self) -> list[Record]:
        return [record for group in self.groups for record in group.records]


def at(result: Any, *path: str) -> Any:
    """What stands at a path of keys, or None."""
    for key in path:
        result = result.get(key) if isinstance(result, (dict, Block)) else None
    return result


def class_of(record: Record) -> str:
    """The optimizer's class, without its module."""
    return str(record.result.get("optimizer_target")).rpartition(".")[2]


def doubts(record: Record) -> list[str]:
    """Why the figures of a run that came to its end are not to be believed; empty for an honest one."""
    checks = record.result.get("checks") or {}
    found = [words for name, words in CHECKS.items() if checks.get(name) is False]
    return found + (["its state kept growing"] if checks.get("state_grew") else [])


def settings(records: Iterable[Record], ignoring: Collection[str] = (), measure: str = COMPARED) -> list[Setting]:
    """The settings of all training runs (or others, by `measure`); `ignoring` names conditions that may differ."""
    kept: dict[str, list[Record]] = defaultdict(list)
    by_key: dict[str, dict[str, Any]] = {}
    trained = [record for record in records if at(record.result, "measure") == measure and at(record.result, "config")]
    loaded = {json.dumps(conditions(record), sort_keys=True): weights(record) for record in trained if weights(record)}
    for record in trained:
        own = conditions(record)
        # A run that failed before its weights were there belongs to those that had them.
        own |= weights(record) or loaded.get(json.dumps(own, sort_keys=True), {})
        own = {name: value for name, value in own.items() if name not in ignoring}
        key = json.dumps(own, sort_keys=True)
        kept[key].append(record)
        by_key[key] = own
    names = dict(zip(by_key, labels(list(by_key.values())), strict=True))
    return [_setting(names[key], by_key[key], kept[key]) for key in sorted(kept, key=lambda key: names[key])]


def conditions(record: Record) -> dict[str, Any]:
    """What must be equal for two runs to be compared: problem, schedule, data, device and versions of the machine.

    Keys are flat: `workload.size`. A run without a result names no machine, and stands apart until it has one.
    """
    result, config = record.result, record.result["config"]
    fixed = {key: value for key, value in config.items() if key not in FREE and key != "workload"}
    fixed["workload"] = {key: value for key, value in config["workload"].items() if key not in FREE_OF_WORKLOAD}
    cpu = at(result, "environment", "cpu")
    fixed |= {
        "workload_name": result["workload"],
        "device": result.get("device") or config.get("device"),
        "machine": at(result, "environment", "gpu", "name") or at(cpu, "model"),
        "threads": at(cpu, "threads") if result.get("device") == "cpu" else None,
        "torch": at(result, "environment", "packages", "torch"),
        "data": result.get("data") or {},
    }
    return flat(fixed)


def weights(record: Record) -> dict[str, Any]:
    """Where a model's first weights came from, the keys flat: `weights.source`; empty where nothing was loaded."""
    return flat({"weights": record.result.get("weights") or {}})


def weights_in_words(own: dict[str, Any]) -> str:
    """That for a label: `random weights, base 0a1b2c3d`, `cache weights org/name@0a1b2c3`."""
    if "weights.source" not in own:
        return ""
    words = f"{own['weights.source']} weights"
    if "weights.repository" in own:
        return f"{words} {own['weights.repository']}@{str(own['weights.revision'])[:7]}"
    return words + (f", base {own['weights.base_sha256'][:8]}" if "weights.base_sha256" in own else "")


def labels(conditions: Sequence[dict[str, Any]]) -> list[str]:
    """For each setting the workload and its size, and whatever tells it from others of the same workload."""
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    names = {key for own in conditions for key in own}
    for own in conditions:
        for key in names:
            values[own["workload_name"], key].add(json.dumps(own.get(key)))
    made = []
    for own in conditions:
        name, size = own["workload_name"], own.get("workload.size")
        parts = [" ".join(filter(None, (name, size))), f"{own.get('steps', 0):,} steps", str(own["device"])]
        parts += filter(None, [weights_in_words(own)])
        told = {"workload_name", "workload.size", "workload.steps", "steps", "device"}
        told |= {key for key in names if key.startswith("weights.")}
        differing = sorted(key for key in names - told if len(values[name, key]) > 1)
        parts += [f"{key.removeprefix('workload.')}={shortened(own.get(key), key == 'machine')}" for key in differing]
        made.append(", ".join(parts))
    repeated = Counter(made)
    return [
        f"{label} #{_digest(own)}" if repeated[label] > 1 else label
        for label, own in zip(made, conditions, strict=True)
    ]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]


def shortened(value: Any, whole: bool = False) -> str:
    """A value in a label."""
    text = ",".join(map(str, value)) if isinstance(value, list) else "null" if value is None else str(value)
    return text if whole or len(text) <= LONGEST else text[: LONGEST // 2] + "…"


def _setting(label: str, conditions: dict[str, Any], records: list[Record]) -> Setting:
    groups = groups_of(records)
    wanted = records[0].result["config"].get("baseline")
    named = [group for group in groups if group.records[0].result["optimizer"] == wanted]
    baseline = named[0] if len(named) == 1 and named[0].ok and not any(map(doubts, named[0].ok)) else None
    return Setting(label, conditions, tuple(groups), baseline, wanted)


def by_problem(
    records: Iterable[Record], measure: str, problem_of: Callable[[Record], tuple[str, ...]]
) -> list[tuple[str, tuple[str, ...], Record]]:
    """(label of the optimizer, problem, record) of the records of one measure, problem by problem."""
    problems: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        if record.result.get("measure") == measure and at(record.result, "config", "optimizer"):
            problems[problem_of(record)].append(record)
    return [
        (group.label, problem, record)
        for problem in sorted(problems)
        for group in groups_of(problems[problem])
        for record in group.records
    ]


def groups_of(records: Sequence[Record]) -> list[Group]:
    """Split by optimizer and its arguments; where one name has several, the label says in what they differ."""
    members: dict[tuple[str, str], dict[Any, Record]] = defaultdict(dict)
    for record in sorted(records, key=lambda record: str(record.result.get("finished") or "")):
        # Of runs of one seed, made before and after an edit of the code or with other evaluations, the last.
        members[record.result["optimizer"], json.dumps(_spec(record), sort_keys=True)][record.result["seed"]] = record
    alike: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, spec in members:
        alike[name].append(json.loads(spec))
    groups = []
    for (name, spec), by_seed in members.items():
        own = json.loads(spec)
        differing = [key for key in own if any(other.get(key) != own[key] for other in alike[name])]
        differences = ", ".join(f"{key}={shortened(own[key])}" for key in differing)
        label = f"{name} ({differences})" if differences else name
        key = json.dumps([name, {part: own[part] for part in own if part != VERSION}], sort_keys=True)
        groups.append(Group(label, key, tuple(by_seed[seed] for seed in sorted(by_seed, key=_order))))
    repeated = [label for label, count in Counter(group.label for group in groups).items() if count > 1]
    for index, group in enumerate(groups):
        if group.label in repeated:
            groups[index] = replace(group, label=f"{group.label} #{_digest([own.name for own in group.records])}")
    return sorted(groups, key=lambda group: group.label)


def _spec(record: Record) -> dict[str, Any]:
    """What makes an optimizer the same one: its arguments, its package's version, the gradients it is given."""
    config, packages = record.result["config"], at(record.result, "environment", "packages") or {}
    package = at(config, "optimizer", "about", "package")
    spec = {key: value for key, value in config["optimizer"].items() if key != "about"}
    spec |= {"sparse": config["workload"]["sparse"]} if "sparse" in config["workload"] else {}
    return spec | ({VERSION: packages[package]} if package != "torch" and package in packages else {})


def _order(seed: Any) -> tuple[bool, Any]:
    return seed is None, seed or 0
