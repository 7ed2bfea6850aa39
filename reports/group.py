"""Which records belong together: a setting is what must be equal to compare, a group one optimizer's seeds in it."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from optimeter.measure.records.naming import VOLATILE, differences, flat
from optimeter.measure.records.read import Record
from optimeter.measure.records.schema import Result
from optimeter.reports.kinds import is_of
from optimeter.reports.labels import digest, labels, name_with
from optimeter.reports.look import configured, doubts, followers, machine_of, on_cpu

# What two compared runs may differ in: it changes neither the problem nor the training.
FREE = (*VOLATILE, "optimizer", "seed", "eval_every", "record_every", "measure")
FREE_OF_WORKLOAD = ("eval_every", "target", "_target_", "_convert_", "about")
MACHINE = ("machine", "threads", "torch", "weights.base_sha256")  # of the conditions: what two machines differ in
COMPARED = "train"
VERSION = "package version"


@dataclass(frozen=True)
class Group:
    """The runs of one optimizer in one setting, by seed; `key` is the same wherever name and arguments are."""

    label: str
    key: str
    records: tuple[Record, ...]

    @property
    def ok(self) -> list[Record]:
        """The runs that came to their end."""
        return [record for record in self.records if record.result.status == "ok"]

    @property
    def sound(self) -> bool:
        """Whether every run came to its end and passed its checks: what is not is shown, and never called the best."""
        return len(self.ok) == len(self.records) and not any(map(doubts, self.ok))

    def median(self, quantity: Callable[[Result], float | None]) -> float | None:
        """The median of a quantity over the finished runs that have it."""
        values = [quantity(record.result) for record in self.ok]
        measured = [value for value in values if value is not None]
        return median(measured) if measured else None

    def status(self) -> str:
        """`ok`, or each status with how many runs came to it, and whatever is doubtful about them."""
        counts = Counter(record.result.status for record in self.records)
        of = f"/{len(self.records)}" if len(self.records) > 1 else ""
        endings = [f"{status} {count}{of}" if of else status for status, count in sorted(counts.items())]
        reasons = dict.fromkeys(doubt for record in self.ok for doubt in doubts(record))
        return ", ".join(endings) + "".join(f"; INVALID: {reason}" for reason in reasons)


@dataclass(frozen=True)
class Setting:
    """One problem under one set of conditions, and the groups that can be compared in it."""

    label: str
    conditions: dict[str, Any]
    groups: tuple[Group, ...]
    baseline: Group | None
    baseline_name: str | None  # whether or not it is there

    @property
    def records(self) -> list[Record]:
        """The runs of all groups."""
        return [record for group in self.groups for record in group.records]


def settings_of(records: Iterable[Record], ignoring: Collection[str] = (), measure: str = COMPARED) -> list[Setting]:
    """The settings of all training runs (or others, by `measure`); `ignoring` names conditions that may differ."""
    runs = [record for record in records if is_of(record.result, measure) and record.result.config]
    members: dict[str, list[Record]] = defaultdict(list)
    by_key: dict[str, dict[str, Any]] = {}
    for record, conditions in zip(runs, _all_conditions(runs), strict=True):
        shared = {name: value for name, value in conditions.items() if name not in ignoring}
        key = _key(shared)
        members[key].append(record)
        by_key[key] = shared
    names = dict(zip(by_key, labels(list(by_key.values())), strict=True))
    return [_setting(names[key], by_key[key], members[key]) for key in sorted(members, key=lambda key: names[key])]


def _all_conditions(runs: Sequence[Record]) -> list[dict[str, Any]]:
    """The conditions of each run, its first weights included.

    A run that failed before its weights were there belongs to those that had them.
    """
    follows = followers(runs)
    conditions = [conditions_of(record, follows[record.result.config["workload"].get("_target_")]) for record in runs]
    weights = [weights_of(record) for record in runs]
    loaded = {_key(own): first for own, first in zip(conditions, weights, strict=True) if first}
    return [own | (first or loaded.get(_key(own), {})) for own, first in zip(conditions, weights, strict=True)]


def _key(conditions: Mapping[str, Any]) -> str:
    return json.dumps(conditions, sort_keys=True)


def conditions_of(record: Record, follows: Collection[str]) -> dict[str, Any]:
    """What must be equal for two runs to be compared: problem, schedule, data, device and versions of the machine.

    `follows`: arguments of the workload that follow the optimizer. Keys are flat: `workload.size`. A run without a
    result names no machine, and stands apart until it has one.
    """
    run = record.result
    free_of_workload = (*FREE_OF_WORKLOAD, *follows)
    conditions = {key: value for key, value in run.config.items() if key not in FREE}
    conditions["workload"] = {
        key: value for key, value in run.config["workload"].items() if key not in free_of_workload
    }
    conditions |= {
        "workload_name": run.workload,
        "device": run.device or run.config.get("device"),
        "machine": machine_of(run),
        "threads": run.environment.cpu.threads if on_cpu(run) else None,
        "torch": run.environment.packages.get("torch"),
        "data": run.data,
    }
    return flat(conditions)


def weights_of(record: Record) -> dict[str, Any]:
    """Where a model's first weights came from, the keys flat: `weights.source`; empty where nothing was loaded."""
    return flat({"weights": record.result.weights})


def _setting(label: str, conditions: dict[str, Any], records: list[Record]) -> Setting:
    groups = groups_of(records)
    name = records[0].result.config.get("baseline")
    named = [group for group in groups if group.records[0].result.optimizer == name]
    sound = len(named) == 1 and named[0].ok and not any(map(doubts, named[0].ok))
    return Setting(label, conditions, tuple(groups), named[0] if sound else None, name)


def by_problem(
    records: Iterable[Record], measure: str, problem_of: Callable[[Record], tuple[str, ...]]
) -> list[tuple[str, tuple[str, ...], Record]]:
    """(label of the optimizer, problem, record) of the records of one measure, problem by problem."""
    problems: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        if is_of(record.result, measure) and configured(record.result, "optimizer"):
            problems[problem_of(record)].append(record)
    return [
        (group.label, problem, record)
        for problem in sorted(problems)
        for group in groups_of(problems[problem])
        for record in group.records
    ]


def groups_of(records: Sequence[Record]) -> list[Group]:
    """Split by optimizer and its arguments; where one name has several, the label says in what they differ."""
    members: dict[str, dict[str, dict[int | None, Record]]] = defaultdict(lambda: defaultdict(dict))
    follows = followers(records)
    for record in sorted(records, key=lambda record: record.result.finished or ""):
        # Of runs of one seed, made before and after an edit of the code or with other evaluations, the last.
        spec = json.dumps(_spec(record, follows[record.result.config["workload"].get("_target_")]), sort_keys=True)
        members[record.result.optimizer][spec][record.result.seed] = record
    groups = []
    for name, by_spec in members.items():
        specs = [json.loads(spec) for spec in by_spec]
        for spec, differing, by_seed in zip(specs, differences(specs, absent=True), by_spec.values(), strict=True):
            key = json.dumps([name, {part: value for part, value in spec.items() if part != VERSION}], sort_keys=True)
            ordered = tuple(by_seed[seed] for seed in sorted(by_seed, key=seed_order))
            groups.append(Group(name_with(name, differing), key, ordered))
    return sorted(_numbered(groups), key=lambda group: group.label)


def _numbered(groups: Sequence[Group]) -> list[Group]:
    """The groups; where labels are alike all the same, with a digest of their runs behind."""
    counts = Counter(group.label for group in groups)
    numbered = []
    for group in groups:
        if counts[group.label] > 1:
            group = replace(group, label=f"{group.label} #{digest([record.name for record in group.records])}")
        numbered.append(group)
    return numbered


def _spec(record: Record, follows: Collection[str]) -> dict[str, Any]:
    """What makes an optimizer the same one: its arguments, what follows it, its package's version."""
    run = record.result
    spec = {key: value for key, value in run.config["optimizer"].items() if key != "about"}
    spec |= {name: run.config["workload"][name] for name in follows if name in run.config["workload"]}
    package = configured(run, "optimizer", "about", "package")
    if package != "torch" and package in run.environment.packages:
        spec[VERSION] = run.environment.packages[package]
    return spec


def seed_order(seed: int | None) -> tuple[bool, int]:
    """A key to sort seeds by: a run without one comes last."""
    return seed is None, seed or 0
