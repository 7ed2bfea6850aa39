"""The table `sparse_vs_dense` of document 003: Adam and SparseAdam on growing tables."""

from collections.abc import Sequence

from optimeter.measure.records.read import Record
from optimeter.reports.comparison import step_seconds
from optimeter.reports.group import Group, Setting, settings_of
from optimeter.reports.look import MB, MS, class_of, configured, middle
from optimeter.reports.table import Cell, Table, scaled, texts

COLUMNS = (
    *("rows of a table", "dim", "device", "steps", "optimizer", "lr", "gradients", "status"),
    *("step ms", "optimizer ms", "gradient MB", "state MB", "final loss"),
)
ADAMS = ("Adam", "SparseAdam")


NOTE = (
    "Two tables each. Separate runs: times have no verdict. The state is dense in every case, so SparseAdam saves "
    "time and gradient memory, not state, against what document 003 says."
)


def sparse_vs_dense(records: Sequence[Record]) -> Table | None:
    """Adam on dense and SparseAdam on sparse gradients of the same tables, growing."""
    adams = [record for record in records if record.result.workload == "embedding" and class_of(record) in ADAMS]
    settings = [setting for setting in settings_of(adams) if _has_both(setting)]
    rows = [_row(group, setting) for setting in sorted(settings, key=_table_rows) for group in setting.groups]
    title = "sparse_vs_dense: Adam and SparseAdam on growing tables (document 003)"
    return Table("sparse_vs_dense", title, COLUMNS, rows, [NOTE]) if rows else None


def _has_both(setting: Setting) -> bool:
    return {_is_sparse(record) for record in setting.records} == {True, False}


def _is_sparse(record: Record) -> bool:
    return bool(configured(record.result, "workload", "sparse"))


def _table_rows(setting: Setting) -> int:
    """Rows of each of the two tables."""
    run = setting.records[0].result
    counts = [record.result.parameters.count or 0 for record in setting.records]
    return configured(run, "workload", "rows") or max(counts) // (2 * configured(run, "workload", "dim"))


def _row(group: Group, setting: Setting) -> list[Cell]:
    run, ok = group.records[0].result, tuple(group.ok)
    dim = configured(run, "workload", "dim")
    count = group.median(lambda run: run.parameters.count)
    rows = int(count) // (2 * dim) if count else configured(run, "workload", "rows")
    return [
        Cell(rows, f"{rows:,}" if rows else "vocabulary", group.records),
        *(Cell(value) for value in (dim, setting.conditions["device"], setting.conditions.get("steps"))),
        *texts(group.label, records=group.records),
        Cell(configured(run, "optimizer", "lr"), "", group.records),
        Cell("sparse" if _is_sparse(group.records[0]) else "dense"),
        *texts(group.status(), records=group.records),
        scaled(group.median(step_seconds), MS, 3, ok),
        scaled(group.median(lambda run: middle(run.time.optimizer)), MS, 3, ok),
        scaled(group.median(lambda run: run.memory.gradient_bytes), 1 / MB, 3, ok),
        scaled(group.median(lambda run: run.memory.state_bytes), 1 / MB, 3, ok),
        scaled(group.median(lambda run: run.quality.final_loss), 1, 3, ok),
    ]
