"""What records say about a claim: each kind of figure is a small function of the runs that a query finds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

from measure.record import Record
from reports.comparison import interval
from reports.expression import evaluate
from reports.group import Group, Setting, at, doubts, settings

Query = dict[str, Any]
ONE_SEED = "one seed"
UNREACHED = "not reached"
UNSTEADINESS = "unsteadiness"  # not a name in a record: worked out from its lines


@dataclass(frozen=True)
class Figure:
    """A number from the records of one setting, its interval where there is one, and why it may not be judged."""

    value: float | None
    low: float | None = None
    high: float | None = None
    label: str = ""
    records: tuple[Record, ...] = ()
    doubt: str = ""  # of a figure that is shown and not judged


def figures(kind: str, query: Query, records: Sequence[Record]) -> list[Figure]:
    """One figure for each setting in which the query's runs, finished and sound, are all there."""
    where = {"measure": "train"} | query.get("where", {})
    make = PAIRED if "to" in query else ALONE
    asked = [record for record in records if matches(record, where)]
    found = []
    for setting in settings(asked, measure=where["measure"]):
        sides = [best(setting, query.get(side, {})) for side in ("of", "to") if side in query or side == "of"]
        chosen = [group for group in sides if group]
        if len(chosen) == len(sides) and (figure := make[kind](query, *chosen)):
            found.append(_labelled(figure, setting, chosen))
    return found


def _labelled(figure: Figure, setting: Setting, groups: Sequence[Group]) -> Figure:
    names, seeds = " / ".join(group.label for group in groups), min(len(group.records) for group in groups)
    many = f", {seeds} seeds" if seeds > 1 else ""
    return replace(figure, label=f"{names} on {described(setting)}{many}")


def described(setting: Setting) -> str:
    """The workload with what shapes its model, the steps, the device: `layer 1024×1024, 8 steps, cpu`."""
    own = setting.conditions
    parts = [own["workload_name"], own.get("workload.size")]
    parts += ["×".join(map(str, shape))] if isinstance(shape := own.get("workload.shape"), list) else []
    parts += [f"{name} {size}" for name in ("rows", "dim", "rank") if (size := own.get(f"workload.{name}")) is not None]
    device = own["machine"] if own["device"] == "cuda" else own["device"]
    measure = at(setting.records[0].result, "measure")
    how = f"{own.get('steps', 0):,} steps" if measure == "train" else measure
    dtype = None if own.get("dtype") == "float32" else own.get("dtype")
    return ", ".join(filter(None, (" ".join(filter(None, parts)), how, dtype, device)))


def best(setting: Setting, wanted: Query) -> Group | None:
    """Of the groups that are asked for, as one name with several learning rates, that of the lowest final loss."""
    found = []
    for group in setting.groups:
        sound = tuple(record for record in group.ok if not doubts(record))
        if sound and matches(sound[0], wanted):
            found.append(Group(group.label, group.key, sound))
    losses = [group.median("quality", "final_loss") for group in found]
    ranked = sorted(range(len(found)), key=lambda i: (-len(found[i].records), losses[i] is None, losses[i] or 0.0))
    return found[ranked[0]] if ranked else None


def matches(record: Record, wanted: Query) -> bool:
    """Whether a run has all of these: a name is of its result, with a dot of its configuration; a list is a choice."""
    return all(_fits(_found(record, name), value) for name, value in wanted.items())


def _found(record: Record, name: str) -> Any:
    return at(record.result, "config", *name.split(".")) if name not in record.result else record.result[name]


def _fits(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(found, (int, float)) and wanted["at_least"] <= found
    return found == wanted or (isinstance(wanted, list) and found in wanted)


def read(record: Record, expression: str) -> float | None:
    """The value of an expression over a record; `first` and `last` are its first and last sampled lines."""
    if expression == UNSTEADINESS:
        return unsteadiness(record)
    if "first." in expression or "last." in expression:
        sampled = [line for line in record.steps() if "update_norm" in line] or [{}]
        whole = record.result | {"first": sampled[0], "last": sampled[-1]}
    else:
        whole = record.result
    return worked_out(expression, whole)


def worked_out(expression: str, names: dict[str, Any]) -> float | None:
    """The value of an expression over nested names."""
    return evaluate(expression, lambda path: at(names, *path))


def unsteadiness(record: Record) -> float | None:
    """Median change of the training loss between two recorded steps, over their median loss; second half of the run."""
    losses = [line["loss"] for line in record.steps() if line.get("loss") is not None]
    half = losses[len(losses) // 2 :]
    changes = [abs(b - a) for a, b in pairwise(half)]
    return median(changes) / middle if changes and (middle := abs(median(half))) else None


def _spread(values: Sequence[float], records: tuple[Record, ...], seeds: bool) -> Figure | None:
    """Mean over seeds with its interval where the claim is about quality, else the median."""
    if not values:
        return None
    if not seeds:
        return Figure(median(values), records=records)
    low, high = interval(values) or (None, None)
    doubt = ONE_SEED if len(values) == 1 else ""
    return Figure(sum(values) / len(values), low, high, records=records, doubt=doubt)


def value(query: Query, group: Group) -> Figure | None:
    """The field itself; `low` and `high` name the fields of its interval."""
    known = [(found, record) for record in group.ok if (found := read(record, query["field"])) is not None]
    figure = _spread([found for found, _ in known], tuple(record for _, record in known), query.get("seeds", False))
    if figure and "low" in query:
        ends = [[read(record, query[end]) for _, record in known] for end in ("low", "high")]
        lows, highs = ([end for end in column if end is not None] for column in ends)
        figure = replace(figure, low=min(lows, default=None), high=max(highs, default=None))
    return figure


def fall(query: Query, group: Group) -> Figure | None:
    """The share of the held-out loss's fall that the first `by` steps brought."""
    shares, used = [], []
    for record in group.ok:
        points = [(at(one, "step"), at(one, "loss")) for one in at(record.result, "quality", "evaluations") or ()]
        losses = {step: loss for step, loss in points if loss is not None}
        if query["by"] in losses and (whole := losses[min(losses)] - losses[max(losses)]) > 0:
            shares.append((losses[min(losses)] - losses[query["by"]]) / whole)
            used.append(record)
    return _spread(shares, tuple(used), query.get("seeds", False))


def rows(query: Query, group: Group) -> Figure | None:
    """How many of the printed numbers a run's steps have, each within `within`."""
    record = group.ok[0]
    found = {line["step"]: worked_out(query["field"], line) for line in record.steps()}
    right = [
        abs(own - printed) <= query["within"]
        for step, printed in query["printed"].items()
        if (own := found.get(step)) is not None
    ]
    return Figure(float(sum(right)), records=(record,)) if len(right) == len(query["printed"]) else None


def paired(combine: Callable[[float, float], float]) -> Callable[[Query, Group, Group], Figure | None]:
    """A figure of two groups, seed by seed."""

    def figure(query: Query, group: Group, other: Group) -> Figure | None:
        base = {record.result["seed"]: record for record in other.ok}
        both = [(record, base[seed]) for record in group.ok if (seed := record.result["seed"]) in base]
        values, used, unreached = [], [], False
        for record, reference in both:
            ours, theirs = read(record, query["field"]), read(reference, query["field"])
            if ours is None and "unreached" in query and theirs is not None:
                ours, unreached = read(record, query["unreached"]), True
            if ours is not None and theirs:
                values.append(combine(ours, theirs))
                used += [record, reference]
        made = _spread(values, tuple(used), query.get("seeds", False))
        if made and "spread" in query:
            made = _apart(made, query["spread"], combine, [pair for pair in both if pair[0] in used])
        if made and unreached:
            made = replace(made, doubt=made.doubt or UNREACHED)
        return made

    return figure


def _apart(
    figure: Figure,
    ends: Sequence[str],
    combine: Callable[[float, float], float],
    pairs: Sequence[tuple[Record, Record]],
) -> Figure:
    """With the interval that the spread of steps inside separate runs leaves."""
    reached = []
    for ours, theirs in pairs:
        for one, other in (ends, ends[::-1]):
            a, b = read(ours, one), read(theirs, other)
            reached += [combine(a, b)] if a is not None and b else []
    if not reached:
        return figure
    return replace(figure, low=min(reached), high=max(reached))


ALONE: dict[str, Callable[[Query, Group], Figure | None]] = {"value": value, "fall": fall, "rows": rows}
PAIRED: dict[str, Callable[[Query, Group, Group], Figure | None]] = {
    "ratio": paired(lambda a, b: a / b),
    "saving": paired(lambda a, b: 1 - a / b),
    "difference": paired(lambda a, b: a - b),
}
