"""The table of `measure=plan`: what a run would need, and the smallest common card that holds it."""

from collections.abc import Mapping, Sequence

from optimeter.measure.records.read import Record
from optimeter.reports.group import by_problem
from optimeter.reports.look import GB, configured
from optimeter.reports.table import DASH, Cell, Table, number, percent, texts

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
    rows = [_row(*planned) for planned in by_problem(records, "plan", _problem)]
    if not rows:
        return None
    return Table("memory_plan", "memory_plan: what a run would need", COLUMNS, rows, NOTES)


def _problem(record: Record) -> tuple[str, ...]:
    """Workload with the arguments that shape its model, and dtype."""
    run = record.result
    parts = [run.workload, run.size]
    for name in run.shaped_by:
        value = configured(run, "workload", name)
        parts += [f"{name} {value}"] if value is not None else []
    return " ".join(filter(None, parts)), str(run.dtype)


def _row(label: str, problem: Sequence[str], record: Record) -> list[Cell]:
    run, plan, source = record.result, record.result.plan, (record,)
    share = run.memory.state_8bit_share
    return [
        *texts(*problem, label, records=source),
        *(_count(elements, source) for elements in (run.parameters.count, run.parameters.trainable)),
        *(
            _gigabytes(size, source)
            for size in (
                *(plan.parameter_bytes, plan.gradient_bytes, plan.state_bytes),
                *(plan.transient_bytes, plan.total_bytes, plan.optimizer_bytes),
            )
        ),
        Cell(share, percent(share), source),
        _smallest_card(plan.fits, source),
        Cell(plan.host_reads, "", source),
        Cell(run.status, run.status, source),
    ]


def _count(elements: int | None, source: tuple[Record, ...]) -> Cell:
    return Cell(elements, DASH if elements is None else f"{elements:,}", source)


def _gigabytes(size: int | None, source: tuple[Record, ...]) -> Cell:
    value = None if size is None else size / GB
    return Cell(value, number(value), source)


def _smallest_card(fits: Mapping[str, bool], source: tuple[Record, ...]) -> Cell:
    """The smallest card (GiB) that the whole fits on, or that none does."""
    cards = [int(card) for card, fitting in fits.items() if fitting]
    if cards:
        return Cell(min(cards), f"{min(cards)} GB", source)
    return Cell(None, f"over {max(map(int, fits))} GB" if fits else DASH, source)
