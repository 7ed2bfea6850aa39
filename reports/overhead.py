"""The table of `measure=overhead`: what the monitor costs, beside controls that show what could have been seen."""

from collections.abc import Sequence

from optimeter.measure.records.read import Record
from optimeter.measure.records.schema import OverheadComparison
from optimeter.reports.table import DASH, Cell, Table, percent, texts

COLUMNS = ("optimizer", "workload", "off/off", "off/on", "off/+1 %", "off/+2 %", "sampling, lines", "verdict")
COMPARED = ("off", "on", "+1 %", "+2 %")  # with the monitor off
NOTE = (
    "Interleaved blocks in one process; median difference and its 90 % bootstrap interval (off/off 99 %). "
    "The verdict adds what is not done at each step, sampling and the writing of lines, to off/on."
)


def monitor_overhead(records: Sequence[Record]) -> Table | None:
    """What the monitor costs, beside the controls."""
    measured = [record for record in records if record.result.status == "ok" and record.result.overhead.comparisons]
    if not measured:
        return None
    title = "monitor_overhead: what the monitor costs"
    return Table("monitor_overhead", title, COLUMNS, [_row(record) for record in measured], [NOTE])


def _row(record: Record) -> list[Cell]:
    run, overhead = record.result, record.result.overhead
    workload = " ".join(filter(None, (run.workload, run.size)))
    share = overhead.sampling_share
    return [
        *texts(run.optimizer, workload, records=(record,)),
        *(_difference(overhead.comparisons.get(name), record) for name in COMPARED),
        Cell(share, percent(share, 2), (record,)),
        *texts(overhead.verdict, records=(record,)),
    ]


def _difference(between: OverheadComparison | None, record: Record) -> Cell:
    """The difference with its interval."""
    if between is None or between.difference is None or between.low is None or between.high is None:
        return Cell(None, DASH)
    text = f"{between.difference:+.2%} [{between.low:+.2%}, {between.high:+.2%}]"
    return Cell(between.difference, text, (record,))
