"""The table of `measure=step`: the optimizer's step alone, against a baseline in the same process."""

from collections.abc import Sequence

from optimeter.measure.records.read import Record
from optimeter.measure.records.schema import Spread, StepSide
from optimeter.reports.group import by_problem
from optimeter.reports.look import MS, configured, doubts, on_cpu, status_of
from optimeter.reports.table import DASH, Cell, Table, number, percent, texts

COLUMNS = (
    *("optimizer", "baseline", "on", "dtype", "device", "verdict", "ratio", "step ms", "baseline ms", "host ms"),
    *("B/parameter moved", "share of copy", "baseline's share", "first step ms", "pairs", "status"),
)
HOST = COLUMNS.index("host ms")  # goes where there is no GPU: the host waits for every operation
NOTES = (
    "Interleaved blocks of steps in one process; the gradients are noise. Step: median over blocks, [p10, p90]. Ratio: "
    "median over pairs of blocks, with its bootstrap interval. FAST: the whole interval is below 1 − δ; SLOW: above "
    "1 + δ; SAME: within; AMBG: none of these, and more time (measure.seconds) or a quieter machine may tell.",
    "B/parameter moved: the least that a step must read and write, parameters and state twice, gradients once (of "
    "sparse ones the touched rows). Share of copy: these bytes a second, of those of a large copy measured in the same "
    "run; 'cached' where the cache holds all that the step works on, so that the share can pass 100 %.",
)
TOPICS = ("curvature", "uneven")  # of a run's notes, those that the columns do not show


def optimizer_steps(records: Sequence[Record]) -> Table | None:
    """Seconds a step of both sides, their ratio with interval and verdict, bytes moved and share of copy bandwidth."""
    measured = by_problem(records, "step", _problem)
    if not measured:
        return None
    rows = [_row(label, problem, record) for label, problem, record in measured]
    kept = [i for i in range(len(COLUMNS)) if i != HOST or any(row[i].value is not None for row in rows)]
    return Table(
        "optimizer_steps",
        "optimizer_steps: the optimizer's step alone, against a baseline",
        [COLUMNS[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
        [*NOTES, *_notes([record for _, _, record in measured])],
    )


def _problem(record: Record) -> tuple[str, ...]:
    """What rows must share to be compared: parameters, baseline, dtype and device."""
    run = record.result
    shapes = configured(run, "measure", "shapes")
    parameters = " ".join(filter(None, (run.workload, run.size))) if shapes is None else shapes
    return tuple(map(str, (parameters, run.config.get("baseline"), run.dtype, run.device)))


def _notes(records: Sequence[Record]) -> list[str]:
    """The margin and confidence of the verdicts, and what the runs themselves had to say, each thing once."""
    margins, remarks = set(), []
    for record in records:
        step = record.result.step
        if step.delta is not None and step.confidence is not None:
            margins.add(f"δ = {step.delta:g}, intervals of {step.confidence:.0%}.")
    for topic in TOPICS:
        remarks += [record.result.step.notes.get(topic) for record in records]
    return [*sorted(margins), *dict.fromkeys(filter(None, remarks))]


def _row(label: str, problem: Sequence[str], record: Record) -> list[Cell]:
    step, source = record.result.step, (record,)
    on, baseline, dtype, device = problem
    verdict = "INVALID" if doubts(record) else step.verdict
    first = step.candidate.first_step
    return [
        *texts(label, baseline, on, dtype, device, verdict, records=source),
        _ratio(record),
        _milliseconds(step.candidate.seconds, source),
        _milliseconds(step.baseline.seconds, source),
        Cell(None) if on_cpu(record.result) else _milliseconds(step.candidate.host_seconds, source),
        Cell(step.candidate.bytes_per_parameter, number(step.candidate.bytes_per_parameter), source),
        _share(step.candidate, source),
        _share(step.baseline, source),
        Cell(first, number(None if first is None else first * MS, 3), source),
        Cell(step.pairs, "", source),
        *texts(status_of(record), records=source),
    ]


def _ratio(record: Record) -> Cell:
    """The ratio with its interval."""
    step = record.result.step
    text = DASH if step.ratio is None else f"{number(step.ratio, 3)} [{number(step.low, 3)}, {number(step.high, 3)}]"
    return Cell(step.ratio, text, (record,))


def _share(side: StepSide, source: tuple[Record, ...]) -> Cell:
    """The share of the copy's bytes a second, and whether it comes out of the cache."""
    cached = ", cached" if side.fits_in_cache else ""
    return Cell(side.copy_share, f"{percent(side.copy_share, 1)}{cached}", source)


def _milliseconds(seconds: Spread | None, source: tuple[Record, ...]) -> Cell:
    """Median milliseconds a step, with the spread of blocks."""
    if seconds is None:
        return Cell(None)
    middle, low, high = (value * MS for value in (seconds.median, seconds.p10, seconds.p90))
    return Cell(middle, f"{number(middle, 3)} [{number(low, 3)}, {number(high, 3)}]", source)
