"""The table `weight_decay_curve` of document 004, worked out from the settings that records of CustomAdamW carry."""

import math
from collections import defaultdict
from collections.abc import Sequence

from optimeter.measure.records.read import Record
from optimeter.reports.look import class_of, configured
from optimeter.reports.table import Cell, Table, percent

PRINTED = {1000: 1.0, 1500: 0.84, 2000: 0.70, 3000: 0.49, 5000: 0.10}  # step → share, in document 004
LAST = max(PRINTED)  # "5000+" in the document
ARGUMENTS = ("wd_transition_steps", "wd_decay_factor", "wd_min_ratio")
Curve = tuple[float, float, float]  # these three: T, f and the floor


def weight_decay_curve(records: Sequence[Record]) -> Table | None:
    """The share of weight decay by step, for each curve that records were made with, beside the document's own."""
    sources: dict[Curve, list[Record]] = defaultdict(list)
    for record in records:
        if class_of(record) == "CustomAdamW" and (curve := _curve_of(record)):
            sources[curve].append(record)
    if not sources:
        return None
    curves = sorted(sources)
    floors = {end for curve in curves if (end := floor_step(*curve)) is not None}
    rows = []
    for step in sorted({*PRINTED, *floors}):
        row = [Cell(step, f"{step:,}")]
        for curve in curves:
            left = share(step, *curve)
            row.append(Cell(left, percent(left, 1), tuple(sources[curve])))
        printed = PRINTED.get(step, PRINTED[LAST] if step > LAST else None)
        rows.append([*row, Cell(printed, percent(printed))])
    columns = ["step", *(f"T={start:g}, f={factor:g}, floor={floor:g}" for start, factor, floor in curves), "printed"]
    ends = "; ".join(f"T={curve[0]:g}, f={curve[1]:g}: {_end(*curve)}" for curve in curves)
    notes = [
        "Share of weight decay at step t: 100 % up to T (wd_transition_steps), then max(floor, f^((t − T)/T)) with "
        "f = wd_decay_factor and floor = wd_min_ratio; worked out from the configurations of runs. Floors: "
        f"{ends}.",
        "Document 004 prints 10 % from step 5000 on, against its own formula: 0.7⁴ = 24.0 % there, and 10 % only from "
        "step 7456.",
    ]
    return Table("weight_decay_curve", "weight_decay_curve: dynamic weight decay (document 004)", columns, rows, notes)


def _curve_of(record: Record) -> Curve | None:
    """(T, f, floor) of a run; None where it has none, or where the decay does not change."""
    run = record.result
    values = [configured(run, "optimizer", name) for name in ARGUMENTS]
    if not all(isinstance(value, (int, float)) for value in values):
        return None
    start, factor, floor = map(float, values)
    changes = start > 0 and 0 < factor <= 1 and 0 <= floor <= 1
    switched_off = configured(run, "optimizer", "dynamic_weight_decay") is False
    return (start, factor, floor) if changes and not switched_off else None


def share(step: float, start: float, factor: float, floor: float) -> float:
    """The share of weight decay that is left after `step` steps (document 004)."""
    return 1.0 if step <= start else max(floor, factor ** ((step - start) / start))


def floor_step(start: float, factor: float, floor: float) -> int | None:
    """The first step at which the share is the floor; None where it never is."""
    if factor == 1 or floor in (0, 1):
        return None
    return math.ceil(start * (1 + math.log(floor) / math.log(factor)))


def _end(start: float, factor: float, floor: float) -> str:
    step = floor_step(start, factor, floor)
    return f"from step {step:,}" if step is not None else "never"
