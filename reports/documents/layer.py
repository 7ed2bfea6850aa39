"""The table `layer_memory` of document 002: what each optimizer keeps for one 4096×8192 layer in fp32."""

from collections.abc import Sequence

from optimeter.measure.records.read import Record
from optimeter.reports.group import Group, settings_of
from optimeter.reports.look import MB, configured
from optimeter.reports.table import DASH, Cell, Table, number, percent, texts

LAYER = [4096, 8192]
FIGURES = ("state MB", "floats", "B/parameter", "of Adam's", "in 8 bits")


NOTE = (
    "Measured on a 4096×8192 matrix in fp32, 33,554,432 parameters; floats = state bytes / 4. Document 002 gives "
    "Adam 67,108,864 floats, which is right, and Adafactor 33,570,816: its own sum is 33,566,720 with momentum "
    "(N + 4096 + 8192), and without, the default of every library, 12,288."
)
ADAM = 2 * 4 * LAYER[0] * LAYER[1]  # bytes of its two moments in fp32


def layer_memory(records: Sequence[Record]) -> Table | None:
    """What each optimizer keeps for one 4096×8192 layer in fp32."""
    settings = settings_of(filter(_is_layer, records))
    groups = [group for setting in settings for group in setting.groups]
    if not groups:
        return None
    return Table(
        "layer_memory",
        "layer_memory: state of one 4096×8192 layer (document 002)",
        ("optimizer", "device", "status", *FIGURES, "predicted = walked"),
        [_row(group) for group in sorted(groups, key=_by_state)],
        [NOTE],
    )


def _is_layer(record: Record) -> bool:
    run = record.result
    shape, dtype = configured(run, "workload", "shape"), run.config.get("dtype")
    return run.workload == "layer" and shape == LAYER and dtype == "float32"


def _by_state(group: Group) -> tuple[bool, float, str]:
    return not group.ok, group.median(lambda run: run.memory.state_bytes) or 0, group.label


def _row(group: Group) -> list[Cell]:
    ok, device = tuple(group.ok), group.records[0].result.device
    state = group.median(lambda run: run.memory.state_bytes)
    share = group.median(lambda run: run.memory.state_8bit_share)
    row = texts(group.label, device, group.status(), records=group.records)
    if state is None:
        row += [Cell(None, DASH)] * 4
    else:
        per_parameter = group.median(lambda run: run.memory.state_bytes_per_parameter)
        row += [
            Cell(state / MB, number(state / MB), ok),
            Cell(state / 4, f"{state / 4:,.0f}", ok),
            Cell(per_parameter, number(per_parameter), ok),
            Cell(state / ADAM, percent(state / ADAM, 2), ok),
        ]
    row.append(Cell(share, percent(share), ok if share is not None else ()))
    return [*row, *texts(_agreement(group, state), records=ok)]


def _agreement(group: Group, state: float | None) -> str | None:
    """Whether the state is as predicted."""
    predicted = group.median(lambda run: run.memory.predicted_state_bytes)
    if state is None or predicted is None:
        return None
    return "yes" if state == predicted else f"no: {predicted:,.0f}"
