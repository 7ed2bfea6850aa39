"""The table of `measure=plan`: what a run would need, and the smallest common card that holds it."""

from collections.abc import Sequence

from optimeter.measure.records.record import Record
from optimeter.reports.group import at, by_problem
from optimeter.reports.table import DASH, Cell, Table, number, percent

GB = 1e9
PARTS = ("parameter_bytes", "gradient_bytes", "state_bytes", "transient_bytes", "total_bytes", "optimizer_bytes")
COLUMNS = (
    *("workload", "dtype", "optimizer", "parameters", "trainable"),
    *("parameters GB", "gradients GB", "state GB", "step GB", "total GB", "optimizer at most GB"),
    *("in 8 bits", "smallest card", "host reads", "status"),
)
NOTES = (
    "By shapes alone, nothing was allocated: the model on torch's meta device, the optimizer's own code on fake "
    "tensors. GB = 10⁹ bytes. State is exact; step: the most that the optimizer allocates while it steps, as its code "
    "runs on the device named in the record (on a GPU torch's own optimizers take their foreach path, which needs "
    "about one more copy of the parameters). Activations come on top.",
    "Optimizer at most: state and step together, the most that another optimizer could save. Smallest card: of common "
    "sizes in GiB, with half a GiB for CUDA itself. Host reads: values that one step reads back, each a wait on a GPU.",
)


def memory_plan(records: Sequence[Record]) -> Table | None:
    """Parameters, gradients, state and transient of each planned run, and the card that they fit on."""
    rows = [_row(*one) for one in by_problem(records, "plan", _problem)]
    if not rows:
        return None
    return Table("memory_plan", "memory_plan: what a run would need", COLUMNS, rows, NOTES)


def _problem(record: Record) -> tuple[str, ...]:
    """Workload with the arguments that shape its model, and dtype."""
    result = record.result
    spec = at(result, "config", "workload") or {}
    named = [f"{name} {spec[name]}" for name in ("rank", "shape", "rows", "dim") if spec.get(name) is not None]
    parts = [result["workload"], result.get("size"), *named]
    return " ".join(str(part) for part in parts if part), str(result.get("dtype"))


def _row(label: str, problem: Sequence[str], record: Record) -> list[Cell]:
    result, own = record.result, (record,)
    counts = [at(result, "parameters", name) for name in ("count", "trainable")]
    sizes = [None if (size := at(result, "plan", name)) is None else size / GB for name in PARTS]
    share, reads = at(result, "memory", "state_8bit_share"), at(result, "plan", "host_reads")
    return [
        *(Cell(text, text, own) for text in (*problem, label)),
        *(Cell(count, DASH if count is None else f"{count:,}", own) for count in counts),
        *(Cell(size, number(size, 4), own) for size in sizes),
        Cell(share, percent(share), own),
        _smallest(at(result, "plan", "fits") or {}, own),
        Cell(reads, "", own),
        Cell(result["status"], result["status"], own),
    ]


def _smallest(fits: dict[str, bool], own: tuple[Record, ...]) -> Cell:
    """The smallest card (GiB) that the whole fits on, or that none does."""
    cards = [int(card) for card, fitting in fits.items() if fitting]
    if cards:
        return Cell(min(cards), f"{min(cards)} GB", own)
    return Cell(None, f"over {max(map(int, fits))} GB" if fits else DASH, own)
