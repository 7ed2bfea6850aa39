"""The table of `measure=step`: the optimizer's step alone, against a baseline in the same process."""

from collections.abc import Sequence

from optimeter.measure.records.record import Record
from optimeter.reports.group import at, by_problem, doubts
from optimeter.reports.table import DASH, Cell, Table, number, percent

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
    found = by_problem(records, "step", _problem)
    if not found:
        return None
    rows = [_row(*one) for one in found]
    kept = [i for i in range(len(COLUMNS)) if i != HOST or any(row[i].value is not None for row in rows)]
    return Table(
        "optimizer_steps",
        "optimizer_steps: the optimizer's step alone, against a baseline",
        [COLUMNS[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
        [*NOTES, *_notes([record for _, _, record in found])],
    )


def _problem(record: Record) -> tuple[str, ...]:
    """What rows must share to be compared: parameters, baseline, dtype and device."""
    result = record.result
    shapes = at(result, "config", "measure", "shapes")
    name = " ".join(str(part) for part in (result["workload"], result.get("size")) if part)
    own = (name if shapes is None else shapes, at(result, "config", "baseline"), result.get("dtype"))
    return tuple(str(part) for part in (*own, result.get("device")))


def _notes(records: Sequence[Record]) -> list[str]:
    """The margin and confidence of the verdicts, and what the runs themselves had to say, each thing once."""
    margins = {
        f"δ = {part['delta']:g}, intervals of {part['confidence']:.0%}."
        for record in records
        if (part := at(record.result, "step")) and {"delta", "confidence"} <= set(part)
    }
    said = [at(record.result, "step", "notes", topic) for topic in TOPICS for record in records]
    return [*sorted(margins), *dict.fromkeys(filter(None, said))]


def _row(label: str, problem: Sequence[str], record: Record) -> list[Cell]:
    result, doubtful = record.result, doubts(record)
    on, baseline, dtype, device = problem
    status = result["status"] + "".join(f"; INVALID: {doubt}" for doubt in doubtful)
    ratio, word = at(result, "step", "ratio"), "INVALID" if doubtful else at(result, "step", "verdict")
    low, high = at(result, "step", "low"), at(result, "step", "high")
    shown = DASH if ratio is None else f"{number(ratio, 3)} [{number(low, 3)}, {number(high, 3)}]"
    first, moved = at(result, "step", "candidate", "first_step"), at(result, "step", "candidate", "bytes_per_parameter")
    own = (record,)
    return [
        *(Cell(text, text, own) for text in (label, baseline, on, dtype, device)),
        Cell(word, word or DASH, own),
        Cell(ratio, shown, own),
        *(_milliseconds(record, side, "seconds") for side in ("candidate", "baseline")),
        _milliseconds(record, "candidate", "host_seconds") if device == "cuda" else Cell(None),
        Cell(moved, number(moved), own),
        *(_share(record, side) for side in ("candidate", "baseline")),
        Cell(first, number(None if first is None else first * 1e3, 3), own),
        Cell(at(result, "step", "pairs"), "", own),
        Cell(status, status, own),
    ]


def _share(record: Record, side: str) -> Cell:
    """The share of the copy's bytes a second, and whether it comes out of the cache."""
    share = at(record.result, "step", side, "copy_share")
    cached = ", cached" if at(record.result, "step", side, "fits_in_cache") else ""
    return Cell(share, f"{percent(share, 1)}{cached}", (record,))


def _milliseconds(record: Record, side: str, clock: str) -> Cell:
    """Median milliseconds a step, with the spread of blocks."""
    seconds = [at(record.result, "step", side, clock, name) for name in ("median", "p10", "p90")]
    if None in seconds:
        return Cell(None)
    middle, low, high = (value * 1e3 for value in seconds)
    return Cell(middle, f"{number(middle, 3)} [{number(low, 3)}, {number(high, 3)}]", (record,))
