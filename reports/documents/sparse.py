"""The table `sparse_vs_dense` of document 003: Adam and SparseAdam on growing tables."""

from collections.abc import Sequence

from optimeter.measure.records.record import Record
from optimeter.reports.comparison import MB
from optimeter.reports.group import Group, Setting, at, class_of, settings
from optimeter.reports.table import Cell, Table, number

COLUMNS = (
    *("rows of a table", "dim", "device", "steps", "optimizer", "lr", "gradients", "status"),
    *("step ms", "optimizer ms", "gradient MB", "state MB", "final loss"),
)
ADAMS = ("Adam", "SparseAdam")


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
    return Table("sparse_vs_dense", title, COLUMNS, rows, notes) if rows else None


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
