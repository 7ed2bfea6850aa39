"""Two folders of records side by side: two machines, two commits, before and after."""

import json
from collections.abc import Iterable, Sequence

from optimeter.measure.records.record import Record
from optimeter.reports.comparison import MB, paired
from optimeter.reports.group import MACHINE, Group, Setting, at, labels, settings
from optimeter.reports.table import Cell, Table, number

QUANTITIES = (
    ("step ms", ("time", "step", "median"), 1e3),
    ("state MB", ("memory", "state_bytes"), 1 / MB),
    ("peak MB", ("memory", "peak_bytes", "overall"), 1 / MB),
    ("process peak MB", ("memory", "process_peak_bytes"), 1 / MB),
)


def compare(a: Sequence[Record], b: Sequence[Record], names: tuple[str, str]) -> Table:
    """A row for each optimizer in each setting that either side has; the machine alone may differ within a row.

    Raises FileNotFoundError for a side without training runs.
    """
    sides = [settings(records, ignoring=MACHINE) for records in (a, b)]
    for name, found in zip(names, sides, strict=True):
        if not found:
            raise FileNotFoundError(f"{name}: no training runs in it to compare")
    columns = ["optimizer", "setting", "finished: A", "finished: B"]
    for quantity, _, _ in QUANTITIES:
        columns += [f"{quantity}: A", f"{quantity}: B", f"{quantity}: B / A"]
    columns += ["final loss: A", "final loss: B", "final loss: B − A"]
    rows = [_row(*row) for row in _matched(*sides)]
    notes = [
        f"A is {names[0]}: {'; '.join(_machines(a))}. B is {names[1]}: {'; '.join(_machines(b))}. Medians over "
        "finished runs; losses are paired by seed. These are separate runs, perhaps of separate machines: a ratio of "
        "times near 1 says nothing (measure=step interleaves its two sides)."
    ]
    return Table("compare", f"{names[0]} and {names[1]}", columns, rows, notes)


def _machines(records: Iterable[Record]) -> list[str]:
    """Device, machine and torch of each side."""
    return sorted(
        {
            f"{record.result.get('device')} on {at(environment, 'gpu', 'name') or at(environment, 'cpu', 'model')}, "
            f"torch {at(environment, 'packages', 'torch')}"
            for record in records
            if (environment := record.result.get("environment"))
        }
    )


def _matched(a: Sequence[Setting], b: Sequence[Setting]) -> list[tuple[str, str, list[Group | None]]]:
    """(optimizer, setting, its group in A and in B), by name."""
    conditions = {_key(setting): setting.conditions for setting in (*a, *b)}
    names = dict(zip(conditions, labels(list(conditions.values())), strict=True))
    found: dict[tuple[str, str], list[Group | None]] = {}
    for side, sides in enumerate((a, b)):
        for setting in sides:
            for group in setting.groups:
                pair = found.setdefault((_key(setting), group.key), [None, None])
                if pair[side]:  # a second version of one package in one folder: a row of its own
                    pair = found.setdefault((_key(setting), group.label), [None, None])
                pair[side] = group
    rows = [(next(filter(None, pair)).label, names[key], pair) for (key, _), pair in found.items()]
    return sorted(rows, key=lambda row: (row[1], row[0]))


def _key(setting: Setting) -> str:
    return json.dumps(setting.conditions, sort_keys=True)


def _row(optimizer: str, setting: str, pair: Sequence[Group | None]) -> list[Cell]:
    a, b = pair
    row = [Cell(optimizer), Cell(setting), *(Cell(side.status() if side else "not there") for side in pair)]
    for _, path, scale in QUANTITIES:
        values = [side.median(*path) if side else None for side in pair]
        ratio = values[1] / values[0] if values[0] and values[1] is not None else None
        scaled = [None if value is None else value * scale for value in values]
        row += [Cell(value, number(value)) for value in (*scaled, ratio)]
    losses = [side.median("quality", "final_loss") if side else None for side in pair]
    found = paired(b, a)[0] if a and b else None
    row += [Cell(loss, number(loss)) for loss in losses]
    return [*row, Cell(found.mean, found.shown()) if found else Cell(None)]
