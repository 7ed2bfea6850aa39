"""The table `relative_memory` of document 001: the CameAMP family's state, 32-bit CameAMP being 100 %."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from optimeter.measure.records.naming import differences
from optimeter.measure.records.read import Record
from optimeter.reports.labels import name_with
from optimeter.reports.look import class_of, configured, doubts
from optimeter.reports.table import DASH, Cell, Table, number, percent, texts

# Name → (the name of its own 32-bit form, what document 001 prints); the last three are for orientation.
FULL = "automagic_cameamp"
MEMBERS = {
    FULL: (FULL, "100 %"),
    "automagic_cameamp8bit": (FULL, "~25 %"),
    "automagic_cameamp_coptim": ("automagic_cameamp_coptim", None),
    "automagic_cameamp_coptim8bit": ("automagic_cameamp_coptim", "~30 %"),
    "adamw": ("adamw", None),
    "adamw8bit": ("adamw", None),
    "custom_adamw": ("custom_adamw", None),
}
OURS = "optimeter.optimizers."
PHASES = ("warm-up", "after")
FREE = ("about", "warmup_steps", "lr")  # of an optimizer's configuration: its state is the same size
NOTE = (
    "State bytes a parameter after the last step of a run, in per cent of 32-bit Automagic_CameAMP's and of the "
    "optimizer's own 32-bit form. A run is warming up while its steps are fewer than its "
    "optimizer's warmup_steps, and some state goes when they are made. Optimizers without such phases stand in "
    "both. Document 001 prints one percentage each, of 32-bit Automagic_CameAMP, and does not say for which "
    "tensors or in which phase. 8-bit forms keep small tensors in 32 bits."
)


@dataclass
class Member:
    """One of the family with one set of arguments, on one problem; its runs by phase."""

    name: str
    arguments: dict[str, object]
    runs: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))

    @property
    def records(self) -> tuple[Record, ...]:
        """All runs, each once."""
        return tuple({record.folder: record for runs in self.runs.values() for record in runs}.values())

    def state(self, phase: str) -> float | None:
        """Median state bytes a parameter of the runs in a phase that came to their end."""
        ok = [record.result for record in self.runs.get(phase, ()) if record.result.status == "ok"]
        states = [run.memory.state_bytes_per_parameter for run in ok]
        measured = [state for state in states if state is not None]
        return median(measured) if measured else None


def relative_memory(records: Sequence[Record]) -> Table | None:
    """State bytes a parameter in the phases that there are, relative to 32-bit CameAMP and to the own 32-bit form."""
    problems = {problem: members for problem, members in _by_problem(records).items() if _has_family(members)}
    if not problems:
        return None
    everyone = [member for members in problems.values() for member in members]
    phases = [phase for phase in PHASES if any(phase in member.runs for member in everyone)]
    columns = ["optimizer", "on", "status"]
    for phase in phases:
        columns += [f"{phase}: B/parameter", f"{phase}: of CameAMP", f"{phase}: of own 32-bit"]
    rows = []
    for problem in sorted(problems):
        members = problems[problem]
        labels = _labels(members)
        rows += [_row(member, label, problem, members, phases) for member, label in zip(members, labels, strict=True)]
    title = "relative_memory: the CameAMP family's state (document 001)"
    return Table("relative_memory", title, [*columns, "printed"], rows, [NOTE])


def _by_problem(records: Sequence[Record]) -> dict[str, list[Member]]:
    """Problem → the optimizers that were run on it, in the order of MEMBERS."""
    problems: dict[str, dict[tuple[int, str], Member]] = defaultdict(dict)
    for record in records:
        name = _name(record)
        if name is None or not configured(record.result, "workload"):
            continue
        optimizer = record.result.config["optimizer"]
        arguments = {argument: value for argument, value in sorted(optimizer.items()) if argument not in FREE}
        key = list(MEMBERS).index(name), json.dumps(arguments, sort_keys=True)
        member = problems[_problem(record)].setdefault(key, Member(name, arguments))
        for phase in _phases(record):
            member.runs[phase].append(record)
    return {problem: [members[key] for key in sorted(members)] for problem, members in problems.items()}


def _has_family(members: Sequence[Member]) -> bool:
    return any(member.name.startswith(FULL) for member in members)


def _name(record: Record) -> str | None:
    """The family's name for a run's optimizer: its own, or that of its class if it is one of ours."""
    ours = str(record.result.optimizer_target).startswith(OURS)
    names = (record.result.optimizer, class_of(record).lower() if ours else "")
    return next((name for name in names if name in MEMBERS), None)


def _problem(record: Record) -> str:
    """What must be equal for two states to be compared, in words."""
    run = record.result
    shape, count = _shape(record), run.parameters.count
    workload = " ".join(filter(None, (run.workload, shape or run.size)))
    counted = f"{count:,} parameters" if count and not shape else ""
    return ", ".join(filter(None, (workload, counted, str(run.dtype), str(run.device))))


def _shape(record: Record) -> str | None:
    """The shapes that the step was given, or that which shapes the workload's model: `4096×8192`."""
    run = record.result
    shapes = configured(run, "measure", "shapes")
    if shapes:
        return shapes
    given = [configured(run, "workload", name) for name in run.shaped_by]
    return next(("×".join(map(str, value)) for value in given if isinstance(value, list)), None)


def _phases(record: Record) -> Sequence[str]:
    warm_up = configured(record.result, "optimizer", "warmup_steps")
    if not isinstance(warm_up, (int, float)):
        return PHASES
    return PHASES[:1] if record.result.steps < warm_up else PHASES[1:]


def _labels(members: Sequence[Member]) -> list[str]:
    """Each name; where one has several sets of arguments, with those in which they differ."""
    labels = []
    for member in members:
        namesakes = [other for other in members if other.name == member.name]
        differing = differences([other.arguments for other in namesakes], absent=True)
        labels.append(name_with(member.name, differing[namesakes.index(member)]))
    return labels


def _row(member: Member, label: str, problem: str, members: Sequence[Member], phases: Sequence[str]) -> list[Cell]:
    form, printed = MEMBERS[member.name]
    records = member.records
    row = texts(label, problem, _status(records), records=records)
    for phase in phases:
        used, state = tuple(member.runs.get(phase, ())), member.state(phase)
        row.append(Cell(state, number(state), used))
        for name in (FULL, form):
            reference = _reference(members, name, phase)
            share = state / reference if state is not None and reference else None
            row.append(Cell(share, percent(share, 1), used if share is not None else ()))
    return [*row, Cell(printed, printed or DASH)]


def _status(records: Sequence[Record]) -> str:
    statuses = sorted({record.result.status for record in records})
    reasons = [doubt for record in records for doubt in doubts(record)]
    return ", ".join(statuses) + "".join(f"; INVALID: {reason}" for reason in reasons)


def _reference(members: Sequence[Member], name: str, phase: str) -> float | None:
    """The state of the 32-bit form called `name` in a phase."""
    for member in members:
        in_32_bits = member.arguments.get("storage", "fp32") == "fp32"
        if member.name == name and in_32_bits and (state := member.state(phase)) is not None:
            return state
    return None
