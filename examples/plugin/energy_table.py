"""The table `energy`: what a training step of each optimizer takes, by workload."""

from collections.abc import Sequence

from optimeter import Cell, Record, Table
from optimeter.reports import number

COLUMNS = ("workload", "optimizer", "device", "mJ a step", "W", "ms a step", "steps", "by")
NOTES = (
    "Of the whole device, whatever else ran on it, from its own counter of energy over all steps together; a dash is "
    "explained in the last column.",
)


def energy(records: Sequence[Record]) -> Table | None:
    """A row for each run of the measure, by what it found and not by its YAML's name; None where there is none."""
    finished = [record for record in records if record.result.status == "ok"]
    measured = [record for record in finished if "joules_per_step" in record.result.extra]
    rows = [row(record) for record in sorted(measured, key=lambda record: str(record.result.workload))]
    return Table("energy", "energy: of a training step", COLUMNS, rows, NOTES) if rows else None


def row(record: Record) -> list[Cell]:
    """What one run found."""
    result, run = record.result, (record,)
    found = result.extra
    names = (result.workload, result.optimizer, result.device)
    joules, seconds = found["joules_per_step"], found["seconds_per_step"]
    millijoules = None if joules is None else 1e3 * joules
    source = found["source"] or result.missing["extra.joules_per_step"]
    return [
        *(Cell(name, "", run) for name in names),
        Cell(millijoules, number(millijoules), run),
        Cell(found["watts"], number(found["watts"]), run),
        Cell(1e3 * seconds, number(1e3 * seconds), run),
        Cell(result.steps, "", run),
        Cell(source, "", run),
    ]
