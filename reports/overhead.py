"""The table of `measure=overhead`: what the monitor costs, beside controls that show what could have been seen."""

from collections.abc import Sequence

from optimeter.measure.records.record import Record
from optimeter.reports.table import Cell, Table, percent


def monitor_overhead(records: Sequence[Record]) -> Table | None:
    """What the monitor costs, beside the controls that show what could have been seen."""
    columns = ("optimizer", "workload", "off/off", "off/on", "off/+1 %", "off/+2 %", "sampling, lines", "verdict")
    rows = []
    for record in records:
        found = record.result.get("overhead")
        if found and record.result["status"] == "ok":
            parts = found["comparisons"]
            shown = [Cell(part["difference"], _interval(part), (record,)) for part in parts.values()]
            names = (
                record.result["optimizer"],
                " ".join(filter(None, (record.result["workload"], record.result["size"]))),
            )
            share = Cell(found["sampling_share"], percent(found["sampling_share"], 2), (record,))
            rows.append(
                [*(Cell(name, name, (record,)) for name in names), *shown, share, Cell(found["verdict"], "", (record,))]
            )
    notes = [
        "Interleaved blocks in one process; median difference and its 90 % bootstrap interval (off/off 99 %). "
        "The verdict adds what is not done at each step, sampling and the writing of lines, to off/on."
    ]
    return Table("monitor_overhead", "monitor_overhead: what the monitor costs", columns, rows, notes) if rows else None


def _interval(part: dict) -> str:
    return f"{part['difference']:+.2%} [{part['low']:+.2%}, {part['high']:+.2%}]"
