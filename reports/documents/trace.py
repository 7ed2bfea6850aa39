"""The table `toy_trace` of document 002: Adam on a quartic, step by step."""

from collections.abc import Sequence

from optimeter.measure.records.read import Record
from optimeter.reports.group import Group, settings_of
from optimeter.reports.look import class_of, configured
from optimeter.reports.table import DASH, Cell, Table

# What document 002 prints for Adam on f(x) = x⁴ + 3x³ + 2 from 3 with lr 0.1: epoch → (x, f).
PRINTED_TRACE = {
    0: (2.7272, 143.58),
    10: (0.4854, 1.90),
    20: (-1.2395, -0.28),
    30: (-1.6548, -1.21),
    40: (-1.7861, -1.70),
    50: (-1.8323, -1.85),
    90: (-1.8910, -1.97),
}
EPOCHS = range(0, 100, 10)


NOTE = (
    "f(x) = x⁴ + 3x³ + 2 from x = 3, lr 0.1. The trace that document 002 prints is wrong: its first step would be "
    "−0.2728, while Adam's first step is exactly lr, to x = 2.9; and its f is not f of its own x "
    "(f(2.7272) = 118.17, not 143.58). The minimum is at x = −2.25, f = −6.54, not near −2."
)
QUARTIC = {"polynomial": [1, 3, 0, 0, 2], "start": 3.0, "dimension": 1}


def toy_trace(records: Sequence[Record]) -> Table | None:
    """x and f after each tenth step, beside what document 002 prints."""
    traced = settings_of(filter(_is_trace, records))
    groups = [group for setting in traced for group in setting.groups if group.ok]
    if not groups:
        return None
    traces = [(group, _trace(group)) for group in groups]
    columns = ["epoch"]
    for group in groups:
        columns += [f"{group.label}: x", f"{group.label}: f"]
    rows = []
    for epoch in EPOCHS:
        row = [Cell(epoch)]
        for group, trace in traces:  # epoch e is printed after step e + 1
            reached = trace.get(epoch + 1, {})
            row.append(_fixed(reached.get("x"), 4, (group.ok[0],)))
            row.append(_fixed(reached.get("f"), 2, (group.ok[0],)))
        x, f = PRINTED_TRACE.get(epoch, (None, None))
        rows.append([*row, _fixed(x, 4), _fixed(f, 2)])
    title = "toy_trace: Adam on a quartic (document 002)"
    return Table("toy_trace", title, [*columns, "printed x", "printed f"], rows, [NOTE])


def _trace(group: Group) -> dict[int, dict[str, float]]:
    """Step → x and f."""
    return {line["step"]: line.get("extra") or {} for line in group.ok[0].steps()}


def _is_trace(record: Record) -> bool:
    run = record.result
    adam = class_of(record) == "Adam" and configured(run, "optimizer", "lr") == 0.1
    quartic = all(configured(run, "workload", name) == value for name, value in QUARTIC.items())
    return run.workload == "toy" and adam and quartic and run.config.get("record_every") == 1


def _fixed(value: float | None, places: int, records: tuple[Record, ...] = ()) -> Cell:
    return Cell(value, DASH if value is None else f"{value:.{places}f}", records)
