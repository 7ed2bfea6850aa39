"""The table `relative_memory` of document 001: the CameAMP family's state, 32-bit CameAMP being 100 %."""

import json
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

from optimeter.measure.records.record import Record
from optimeter.reports.group import at, class_of, doubts, shortened
from optimeter.reports.table import DASH, Cell, Table, number, percent

# Name → (the name of its own 32-bit form, what document 001 prints); the last three are for orientation.
FULL = "automagic_cameamp"
MEMBERS = {
    FULL: (FULL, "100 %"),
    "automagic_cameamp8bit": (FULL, "~25 %"),
    "automagic_cameamp_coptim": ("automagic_cameamp_coptim", None),
    "automagic_cameamp_coptim8bit": ("automagic_cameamp_coptim", "~30 %"),
    "adamw": ("adamw", None),
    "adamw8bit": ("adamw", None),
    "custom_adamw": ("custom_adamw", None),
}
OURS = "optimeter.optimizers."
PHASES = ("warm-up", "after")
FREE = ("about", "warmup_steps", "lr")  # of an optimizer's configuration: its state is the same size
Row = dict[str, list[Record]]  # by phase


def relative_memory(records: Sequence[Record]) -> Table | None:
    """State bytes a parameter in the phases that there are, relative to 32-bit CameAMP and to the own 32-bit form."""
    problems: dict[str, dict[tuple[str, str], Row]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for record in records:
        name = _member(record)
        if name and at(record.result, "config", "workload"):
            row = problems[_problem(record)][name, _variant(record)]
            for phase in _phases(record):
                row[phase].append(record)
    shown = {label: rows for label, rows in problems.items() if any(name.startswith(FULL) for name, _ in rows)}
    if not shown:
        return None
    phases = [phase for phase in PHASES if any(phase in row for rows in shown.values() for row in rows.values())]
    columns = ["optimizer", "on", "status"]
    for phase in phases:
        columns += [f"{phase}: B/parameter", f"{phase}: of CameAMP", f"{phase}: of own 32-bit"]
    made = [_cells(key, label, shown[label], phases) for label in sorted(shown) for key in _ordered(shown[label])]
    notes = [
        "State bytes a parameter after the last step of a run, in per cent of 32-bit Automagic_CameAMP's and of the "
        "optimizer's own 32-bit form. A run is warming up while its steps are fewer than its "
        "optimizer's warmup_steps, and some state goes when they are made. Optimizers without such phases stand in "
        "both. Document 001 prints one percentage each, of 32-bit Automagic_CameAMP, and does not say for which "
        "tensors or in which phase. 8-bit forms keep small tensors in 32 bits."
    ]
    title = "relative_memory: the CameAMP family's state (document 001)"
    return Table("relative_memory", title, [*columns, "printed"], made, notes)


def _member(record: Record) -> str | None:
    """The family's name for a run's optimizer: its own, or that of its class if it is one of ours."""
    target = str(record.result.get("optimizer_target"))
    names = (record.result["optimizer"], class_of(record).lower() if target.startswith(OURS) else "")
    return next((name for name in names if name in MEMBERS), None)


def _problem(record: Record) -> str:
    """What must be equal for two states to be compared, in words."""
    result = record.result
    shape = at(result, "config", "measure", "shapes") or at(result, "config", "workload", "shape")
    count = at(result, "parameters", "count")
    size = "×".join(map(str, shape)) if isinstance(shape, list) else shape or result.get("size")
    counted = f"{count:,} parameters" if count and not shape else ""
    where = [str(result.get(key)) for key in ("dtype", "device")]
    return ", ".join(filter(None, (" ".join(filter(None, (result["workload"], size))), counted, *where)))


def _variant(record: Record) -> str:
    optimizer = at(record.result, "config", "optimizer")
    return json.dumps({key: value for key, value in optimizer.items() if key not in FREE}, sort_keys=True)


def _phases(record: Record) -> Sequence[str]:
    warm_up, steps = at(record.result, "config", "optimizer", "warmup_steps"), record.result.get("steps") or 0
    if not isinstance(warm_up, (int, float)):
        return PHASES
    return (PHASES[0],) if steps < warm_up else (PHASES[1],)


def _ordered(rows: dict[tuple[str, str], Row]) -> list[tuple[str, str]]:
    return sorted(rows, key=lambda key: (list(MEMBERS).index(key[0]), key[1]))


def _cells(key: tuple[str, str], label: str, rows: dict[tuple[str, str], Row], phases: Sequence[str]) -> list[Cell]:
    row, (form, printed) = rows[key], MEMBERS[key[0]]
    own = tuple({record.folder: record for chosen in row.values() for record in chosen}.values())
    states = sorted({record.result["status"] for record in own})
    status = ", ".join(states) + "".join(f"; INVALID: {doubt}" for record in own for doubt in doubts(record))
    cells = [Cell(text, text, own) for text in (_label(key, rows), label, status)]
    for phase in phases:
        used = tuple(row.get(phase, ()))
        state, references = _state(used), [_reference(rows, name, phase) for name in (FULL, form)]
        shares = [state / whole if state is not None and whole else None for whole in references]
        cells.append(Cell(state, number(state), used))
        cells += [Cell(share, percent(share, 1), used if share is not None else ()) for share in shares]
    return [*cells, Cell(printed, printed or DASH)]


def _state(records: Sequence[Record]) -> float | None:
    """Median state bytes a parameter of the runs that came to their end."""
    ok = [record.result for record in records if record.result["status"] == "ok"]
    values = [value for result in ok if (value := at(result, "memory", "state_bytes_per_parameter")) is not None]
    return median(values) if values else None


def _reference(rows: dict[tuple[str, str], Row], name: str, phase: str) -> float | None:
    """The state of the 32-bit form called `name` in a phase."""
    for key in _ordered(rows):
        storage: Any = json.loads(key[1]).get("storage", "fp32")
        if key[0] == name and storage == "fp32" and (state := _state(rows[key].get(phase, ()))) is not None:
            return state
    return None


def _label(key: tuple[str, str], rows: dict[tuple[str, str], Row]) -> str:
    """The name, and where one name has several arguments, in what they differ."""
    name, own = key[0], json.loads(key[1])
    others = [json.loads(variant) for other, variant in rows if other == name]
    differing = [part for part in own if any(other.get(part) != own[part] for other in others)]
    return f"{name} ({', '.join(f'{part}={shortened(own[part])}' for part in differing)})" if differing else name
