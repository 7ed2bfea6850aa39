"""What records say about a claim: each kind of figure is a small function of the runs that a query finds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from optimeter.measure.records.read import Record
from optimeter.reports.documents.quantities import TARGET, Query, matches, read, worked_out
from optimeter.reports.group import COMPARED, Group, Setting, seed_order, settings_of
from optimeter.reports.kinds import is_of
from optimeter.reports.look import configured, doubts, on_cpu
from optimeter.reports.paired import interval

ONE_SEED = "one seed"
ONE_RATE = "one learning rate"
UNREACHED, OUTDONE = "not reached", "not reached by the other"  # the figure is the best, the worst that it could be
BOTH = "not reached by both"


@dataclass(frozen=True)
class Figure:
    """A number from the records of one setting, its interval where there is one, and why it may not be judged."""

    value: float | None
    low: float | None = None
    high: float | None = None
    label: str = ""
    records: tuple[Record, ...] = ()
    doubt: str = ""  # of a figure that is shown and not judged
    bound: str = ""  # UNREACHED, OUTDONE or BOTH: of a figure that stands for others


def figures(kind: str, query: Query, records: Sequence[Record]) -> list[Figure]:
    """One figure for each setting in which the query's runs, finished and sound, are all there."""
    where = dict(query.get("where", {}))
    measure = where.pop("measure", COMPARED)
    make = PAIRED if "to" in query else ALONE
    asked = [record for record in records if matches(record, where)]
    measured = []
    for setting in settings_of(asked, measure=measure):
        sides = [candidates(setting, query.get(side, {})) for side in ("of", "to") if side in query or side == "of"]
        chosen = [best(side, query.get("field")) for side in sides if side]
        if len(chosen) == len(sides) and (figure := make[kind](query, *chosen)):
            if query.get("seeds") and "to" in query and min(map(len, map(rates, sides))) < 2:
                figure = replace(figure, doubt=figure.doubt or ONE_RATE)  # nobody knows whether it suits both
            measured.append(_labelled(figure, setting, chosen))
    # Beside settings of several seeds one of a single seed decides nothing.
    return [figure for figure in measured if figure.doubt != ONE_SEED] or measured


def rates(groups: Sequence[Group]) -> set[Any]:
    """The learning rates among them."""
    return {configured(group.records[0].result, "optimizer", "lr") for group in groups}


def _labelled(figure: Figure, setting: Setting, groups: Sequence[Group]) -> Figure:
    optimizers, seeds = " / ".join(group.label for group in groups), min(len(group.records) for group in groups)
    many = f", {seeds} seeds" if seeds > 1 else ""
    return replace(figure, label=f"{optimizers} on {described(setting)}{many}")


def described(setting: Setting) -> str:
    """The workload with what shapes its model, the steps, the device: `layer 1024×1024, 8 steps, cpu`."""
    conditions, run = setting.conditions, setting.records[0].result
    workload = [conditions["workload_name"], conditions.get("workload.size")]
    for name in run.shaped_by:
        value = conditions.get(f"workload.{name}")
        if isinstance(value, list):
            workload.append("×".join(map(str, value)))
        elif value is not None:
            workload.append(f"{name} {value}")
    how = f"{conditions.get('steps', 0):,} steps" if is_of(run, COMPARED) else run.measure
    dtype = None if conditions.get("dtype") == "float32" else conditions.get("dtype")
    device = conditions["device"] if on_cpu(run) else conditions["machine"]
    return ", ".join(filter(None, (" ".join(filter(None, workload)), how, dtype, device)))


def candidates(setting: Setting, wanted: Query) -> list[Group]:
    """The groups that are asked for, with their sound runs: one a seed, that which was evaluated most often."""
    groups = []
    for group in setting.groups:
        sound = [record for record in group.ok if not doubts(record)]
        if sound and matches(sound[0], wanted):
            sound.sort(key=lambda record: len(record.result.quality.evaluations))
            by_seed = {record.result.seed: record for record in sound}
            ordered = tuple(by_seed[seed] for seed in sorted(by_seed, key=seed_order))
            groups.append(replace(group, records=ordered))
    return groups


def best(groups: Sequence[Group], field: str | None = None) -> Group:
    """Of one optimizer with several learning rates the best: most seeds, then the lowest final loss.

    For a figure about the steps to a target: most seeds that reached it, then the fewest steps.
    """

    def rank(group: Group) -> tuple[float, ...]:
        steps = [record.result.quality.steps_to_target for record in group.records]
        reached = [step for step in steps if step is not None]
        loss = group.median(lambda run: run.quality.final_loss)
        lowest: tuple[float, ...] = (float("inf") if loss is None else loss,)
        if field == TARGET:
            lowest = (-len(reached), sum(reached) / len(reached) if reached else 0.0, *lowest)
        return (-len(group.records), *lowest)

    return min(groups, key=rank)


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
        evaluations = record.result.quality.evaluations
        losses = {point.step: point.loss for point in evaluations if point.loss is not None}
        if query["by"] not in losses:
            continue
        start, end = losses[min(losses)], losses[max(losses)]
        if start > end:
            shares.append((start - losses[query["by"]]) / (start - end))
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


def seed_by_seed(combine: Callable[[float, float], float]) -> Callable[[Query, Group, Group], Figure | None]:
    """A figure of two groups, seed by seed."""

    def figure(query: Query, group: Group, other: Group) -> Figure | None:
        base = {record.result.seed: record for record in other.ok}
        pairs = [(record, base[record.result.seed]) for record in group.ok if record.result.seed in base]
        values, used, bounds = [], [], set()
        for pair in pairs:
            ours, theirs = (read(record, query["field"]) for record in pair)
            if "unreached" in query and (ours is None) != (theirs is None):
                bounds.add(UNREACHED if ours is None else OUTDONE)
                ours, theirs = (
                    read(record, query["unreached"]) if one is None else one
                    for record, one in zip(pair, (ours, theirs), strict=True)
                )
            if ours is not None and theirs:
                values.append(combine(ours, theirs))
                used.append(pair)
        made = _spread(values, tuple(record for pair in used for record in pair), query.get("seeds", False))
        if made and "spread" in query:
            made = _apart(made, query["spread"], combine, used)
        if made and query["field"] == TARGET:
            made = _grained(made, combine, used)
        if made and bounds:
            made = replace(made, bound=bounds.pop() if len(bounds) == 1 else BOTH)
        return made

    return figure


def _grained(
    figure: Figure, combine: Callable[[float, float], float], pairs: Sequence[tuple[Record, Record]]
) -> Figure:
    """With its interval made wider by what evaluating only now and then leaves open."""
    grains = []
    for pair in pairs:
        (a, first), (b, base) = map(_reached, pair)
        values = [combine(one, other) for one in (a, first) for other in (b, base) if other]
        grains.append((min(values) - combine(first, base), max(values) - combine(first, base)))
    wider = [sum(column) / len(grains) for column in zip(*grains, strict=True)]
    low, high = (figure.value if end is None else end for end in (figure.low, figure.high))
    return replace(figure, low=(low or 0.0) + wider[0], high=(high or 0.0) + wider[1])


def _reached(record: Record) -> tuple[float, float]:
    """The first and the last step at which the target can have been reached; the whole run twice where it was not."""
    step = read(record, TARGET)
    if step is None:
        return (float(record.result.steps),) * 2
    earlier = [point.step for point in record.result.quality.evaluations if point.step < step]
    return max((before + 1.0 for before in earlier), default=step), float(step)


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
    "ratio": seed_by_seed(lambda a, b: a / b),
    "saving": seed_by_seed(lambda a, b: 1 - a / b),
    "difference": seed_by_seed(lambda a, b: a - b),
}
