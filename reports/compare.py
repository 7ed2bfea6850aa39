"""Two folders of records side by side: two machines, two commits, before and after."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from measure.record import Record
from reports.comparison import MB
from reports.group import at
from reports.table import Cell, Table, number

Key = tuple[str, str, str]


def compare(a: Sequence[Record], b: Sequence[Record], names: tuple[str, str]) -> Table:
    """A row for each optimizer and workload that either has; ratios are b / a."""
    grouped = (_grouped(a), _grouped(b))
    columns = ["optimizer", "workload", "runs"]
    for quantity in ("step ms", "state MB", "peak MB", "final loss"):
        columns += [f"{quantity}: A", "B", "B / A"]
    rows = [_row(key, [groups.get(key, []) for groups in grouped]) for key in sorted(set(grouped[0]) | set(grouped[1]))]
    notes = [
        f"A is {names[0]}, B is {names[1]}. Medians over finished runs. These are separate runs, perhaps of separate "
        "machines: a ratio of times near 1 says nothing (measure=overhead and measure=step interleave theirs)."
    ]
    return Table("compare", f"{names[0]} and {names[1]}", columns, rows, notes)


def _grouped(records: Sequence[Record]) -> dict[Key, list[Record]]:
    groups: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        result = record.result
        lr = at(result, "config", "optimizer", "lr")
        size = " ".join(str(part) for part in (result.get("workload"), result.get("size"), result.get("dtype")) if part)
        groups[f"{result.get('optimizer')} (lr {lr})", size, str(result.get("measure"))].append(record)
    return groups


def _row(key: Key, sides: Sequence[list[Record]]) -> list[Cell]:
    finished = [[record for record in side if record.result["status"] == "ok"] for side in sides]
    counts = " and ".join(f"{len(ok)}/{len(side)}" for ok, side in zip(finished, sides, strict=True))
    row = [Cell(key[0]), Cell(key[1]), Cell(counts)]
    quantities = (
        (("time", "step", "median"), 1e3),
        (("memory", "state_bytes"), 1 / MB),
        (("memory", "peak_bytes", "overall"), 1 / MB),
        (("quality", "final_loss"), 1),
    )
    for path, scale in quantities:
        values = []
        for records in finished:
            found = [value for record in records if (value := at(record.result, *path)) is not None]
            values.append(median(found) * scale if found else None)
        ratio = values[1] / values[0] if values[0] and values[1] is not None else None
        row += [Cell(value, number(value)) for value in (*values, ratio)]
    return row
