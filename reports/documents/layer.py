"""The table `layer_memory` of document 002: what each optimizer keeps for one 4096×8192 layer in fp32."""

from collections.abc import Sequence

from optimeter.measure.records.record import Record
from optimeter.reports.comparison import MB
from optimeter.reports.group import Group, at, settings
from optimeter.reports.table import DASH, Cell, Table, number, percent

LAYER = [4096, 8192]
FIGURES = ("state MB", "floats", "B/parameter", "of Adam's", "in 8 bits")


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
        ("optimizer", "device", "status", *FIGURES, "predicted = walked"),
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
