"""The tables that the five documents print, made again from records, by the names that design §6 gives them."""

from collections.abc import Callable, Sequence

from optimeter.measure.records.record import Record
from optimeter.reports.comparison import MB
from optimeter.reports.documents.claims import claims
from optimeter.reports.documents.decay import weight_decay_curve
from optimeter.reports.documents.finetuning import adafactor_vs_adam, lora_comparison, lora_summary
from optimeter.reports.documents.relative import relative_memory
from optimeter.reports.group import Group, Setting, at, class_of, settings
from optimeter.reports.plans import memory_plan
from optimeter.reports.steps import optimizer_steps
from optimeter.reports.table import DASH, Cell, Table, number, percent

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
LAYER = [4096, 8192]
LAYER_FIGURES = ("state MB", "floats", "B/parameter", "of Adam's", "in 8 bits")
SPARSE_COLUMNS = (
    *("rows of a table", "dim", "device", "steps", "optimizer", "lr", "gradients", "status"),
    *("step ms", "optimizer ms", "gradient MB", "state MB", "final loss"),
)
ADAMS = ("Adam", "SparseAdam")


def toy_trace(records: Sequence[Record]) -> Table | None:
    """x and f after each tenth step, beside what document 002 prints."""
    groups = [group for setting in settings(filter(_is_trace, records)) for group in setting.groups if group.ok]
    if not groups:
        return None
    traces = [(group, {line["step"]: line.get("extra") or {} for line in group.ok[0].steps()}) for group in groups]
    columns = [
        "epoch",
        *(f"{group.label}: {name}" for group in groups for name in ("x", "f")),
        "printed x",
        "printed f",
    ]
    rows = []
    for epoch in EPOCHS:
        row = [Cell(epoch)]
        for group, trace in traces:  # epoch e is printed after step e + 1
            extra = trace.get(epoch + 1, {})
            row.append(Cell(extra.get("x"), _fixed(extra.get("x"), 4), (group.ok[0],)))
            row.append(Cell(extra.get("f"), _fixed(extra.get("f"), 2), (group.ok[0],)))
        x, f = PRINTED_TRACE.get(epoch, (None, None))
        rows.append([*row, Cell(x, _fixed(x, 4)), Cell(f, _fixed(f, 2))])
    notes = [
        "f(x) = x⁴ + 3x³ + 2 from x = 3, lr 0.1. The trace that document 002 prints is wrong: its first step would be "
        "−0.2728, while Adam's first step is exactly lr, to x = 2.9; and its f is not f of its own x "
        "(f(2.7272) = 118.17, not 143.58). The minimum is at x = −2.25, f = −6.54, not near −2."
    ]
    return Table("toy_trace", "toy_trace: Adam on a quartic (document 002)", columns, rows, notes)


def _is_trace(record: Record) -> bool:
    config = record.result.get("config") or {}
    workload = config.get("workload") or {}
    same = {"polynomial": [1, 3, 0, 0, 2], "start": 3.0, "dimension": 1}
    right = record.result["workload"] == "toy" and class_of(record) == "Adam" and at(config, "optimizer", "lr") == 0.1
    return right and all(workload.get(key) == value for key, value in same.items()) and config.get("record_every") == 1


def _fixed(value: float | None, places: int) -> str:
    return DASH if value is None else f"{value:.{places}f}"


def layer_memory(records: Sequence[Record]) -> Table | None:
    """What each optimizer keeps for one 4096×8192 layer in fp32."""
    chosen = [record for record in records if _is_layer(record)]
    groups = [group for setting in settings(chosen) for group in setting.groups]
    if not groups:
        return None
    full = 2 * 4 * LAYER[0] * LAYER[1]  # Adam's two moments in fp32
    by_state = sorted(groups, key=lambda g: (not g.ok, g.median("memory", "state_bytes") or 0, g.label))
    notes = [
        "Measured on a 4096×8192 matrix in fp32, 33,554,432 parameters; floats = state bytes / 4. Document 002 gives "
        "Adam 67,108,864 floats, which is right, and Adafactor 33,570,816: its own sum is 33,566,720 with momentum "
        "(N + 4096 + 8192), and without, the default of every library, 12,288."
    ]
    return Table(
        "layer_memory",
        "layer_memory: state of one 4096×8192 layer (document 002)",
        ("optimizer", "device", "status", *LAYER_FIGURES, "predicted = walked"),
        [_layer_row(group, full) for group in by_state],
        notes,
    )


def _is_layer(record: Record) -> bool:
    config = record.result.get("config")
    right = record.result["workload"] == "layer" and at(config, "workload", "shape") == LAYER
    return right and at(config, "dtype") == "float32"


def _layer_row(group: Group, full: int) -> list[Cell]:
    state = group.median("memory", "state_bytes")
    ok = tuple(group.ok)
    predicted = group.median("memory", "predicted_state_bytes")
    agree = None if state is None or predicted is None else "yes" if state == predicted else f"no: {predicted:,.0f}"

    def cell(value: float | None, text: str) -> Cell:
        return Cell(value, text, ok if value is not None else ())

    return [
        Cell(group.label, group.label, group.records),
        Cell(device := group.records[0].result.get("device"), device or DASH, group.records),
        Cell(group.status(), group.status(), group.records),
        cell(None if state is None else state / MB, number(None if state is None else state / MB)),
        cell(None if state is None else state / 4, DASH if state is None else f"{state / 4:,.0f}"),
        cell(value := group.median("memory", "state_bytes_per_parameter"), number(value)),
        cell(None if state is None else state / full, percent(None if state is None else state / full, 2)),
        cell(value := group.median("memory", "state_8bit_share"), percent(value)),
        Cell(agree, agree or DASH, ok),
    ]


def sparse_vs_dense(records: Sequence[Record]) -> Table | None:
    """Adam on dense and SparseAdam on sparse gradients of the same tables, growing."""
    adams = [r for r in records if r.result["workload"] == "embedding" and class_of(r) in ADAMS]
    both = [setting for setting in settings(adams) if {_is_sparse(r) for r in setting.records} == {True, False}]
    rows = [_sparse_row(group, setting) for setting in sorted(both, key=_rows) for group in setting.groups]
    notes = [
        "Two tables each. Separate runs: times have no verdict. The state is dense in every case, so SparseAdam saves "
        "time and gradient memory, not state, against what document 003 says."
    ]
    title = "sparse_vs_dense: Adam and SparseAdam on growing tables (document 003)"
    return Table("sparse_vs_dense", title, SPARSE_COLUMNS, rows, notes) if rows else None


def _is_sparse(record: Record) -> bool:
    return bool(at(record.result, "config", "workload", "sparse"))


def _rows(setting: Setting) -> int:
    record = setting.records[0].result
    rows = at(record, "config", "workload", "rows")
    counts = [at(r.result, "parameters", "count") or 0 for r in setting.records]
    return rows or max(counts) // (2 * at(record, "config", "workload", "dim"))


def _sparse_row(group: Group, setting: Setting) -> list[Cell]:
    ok, first = tuple(group.ok), group.records[0].result
    dim = at(first, "config", "workload", "dim")
    count = group.median("parameters", "count")
    rows = int(count) // (2 * dim) if count else at(first, "config", "workload", "rows")

    def cell(value: float | None, scale: float) -> Cell:
        scaled = None if value is None else value * scale
        return Cell(scaled, number(scaled, 3), ok if value is not None else ())

    return [
        Cell(rows, f"{rows:,}" if rows else "vocabulary", group.records),
        *(Cell(value) for value in (dim, setting.conditions["device"], setting.conditions.get("steps"))),
        Cell(group.label, group.label, group.records),
        Cell(at(first, "config", "optimizer", "lr"), "", group.records),
        Cell("sparse" if _is_sparse(group.records[0]) else "dense"),
        Cell(group.status(), group.status(), group.records),
        cell(group.median("time", "step", "median"), 1e3),
        cell(group.median("time", "optimizer", "median"), 1e3),
        cell(group.median("memory", "gradient_bytes"), 1 / MB),
        cell(group.median("memory", "state_bytes"), 1 / MB),
        cell(group.median("quality", "final_loss"), 1),
    ]


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


TABLES: tuple[Callable[[Sequence[Record]], Table | None], ...] = (
    toy_trace,
    layer_memory,
    adafactor_vs_adam,
    relative_memory,
    sparse_vs_dense,
    weight_decay_curve,
    lora_comparison,
    lora_summary,
    optimizer_steps,
    memory_plan,
    monitor_overhead,
    claims,
)
