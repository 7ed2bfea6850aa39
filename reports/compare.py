"""Two folders of records side by side: two machines, two commits, before and after."""

import json
from collections.abc import Callable, Iterable, Sequence

from optimeter.measure.records.read import Record
from optimeter.measure.records.schema import Result
from optimeter.reports.comparison import step_seconds
from optimeter.reports.group import MACHINE, Group, Setting, settings_of
from optimeter.reports.labels import labels
from optimeter.reports.look import MB, MS, machine_of, peak
from optimeter.reports.paired import paired_difference
from optimeter.reports.table import Cell, Table, number

QUANTITIES: tuple[tuple[str, Callable[[Result], float | None], float], ...] = (
    ("step ms", step_seconds, MS),
    ("state MB", lambda run: run.memory.state_bytes, 1 / MB),
    ("peak MB", peak, 1 / MB),
    ("process peak MB", lambda run: run.memory.process_peak_bytes, 1 / MB),
)


def compare(a: Sequence[Record], b: Sequence[Record], names: tuple[str, str]) -> Table:
    """A row for each optimizer in each setting that either side has; the machine alone may differ within a row.

    Raises FileNotFoundError for a side without training runs.
    """
    sides = [settings_of(records, ignoring=MACHINE) for records in (a, b)]
    for name, settings in zip(names, sides, strict=True):
        if not settings:
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
    machines = set()
    for record in records:
        run = record.result
        if machine_of(run):
            machines.add(f"{run.device} on {machine_of(run)}, torch {run.environment.packages.get('torch')}")
    return sorted(machines)


def _matched(a: Sequence[Setting], b: Sequence[Setting]) -> list[tuple[str, str, list[Group | None]]]:
    """(optimizer, setting, its group in A and in B), by name."""
    conditions = {_key(setting): setting.conditions for setting in (*a, *b)}
    names = dict(zip(conditions, labels(list(conditions.values())), strict=True))
    pairs: dict[tuple[str, str], list[Group | None]] = {}
    for side, settings in enumerate((a, b)):
        for setting in settings:
            for group in setting.groups:
                pair = pairs.setdefault((_key(setting), group.key), [None, None])
                if pair[side]:  # a second version of one package in one folder: a row of its own
                    pair = pairs.setdefault((_key(setting), group.label), [None, None])
                pair[side] = group
    rows = [(next(filter(None, pair)).label, names[key], pair) for (key, _), pair in pairs.items()]
    return sorted(rows, key=lambda row: (row[1], row[0]))


def _key(setting: Setting) -> str:
    return json.dumps(setting.conditions, sort_keys=True)


def _row(optimizer: str, setting: str, pair: Sequence[Group | None]) -> list[Cell]:
    a, b = pair
    row = [Cell(optimizer), Cell(setting), *(Cell(side.status() if side else "not there") for side in pair)]
    for _, quantity, factor in QUANTITIES:
        values = [side.median(quantity) if side else None for side in pair]
        ratio = values[1] / values[0] if values[0] and values[1] is not None else None
        in_units = [None if value is None else value * factor for value in values]
        row += [Cell(value, number(value)) for value in (*in_units, ratio)]
    losses = [side.median(lambda run: run.quality.final_loss) if side else None for side in pair]
    row += [Cell(loss, number(loss)) for loss in losses]
    between = paired_difference(b, a)[0] if a and b else None
    return [*row, Cell(between.mean, between.shown()) if between else Cell(None)]
