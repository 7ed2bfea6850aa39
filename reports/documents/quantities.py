"""What a query of a claim asks of one run: whether it is one that is meant, and the value of an expression over it."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from optimeter.measure.records.fields import names
from optimeter.measure.records.read import Record
from optimeter.measure.records.schema import Result
from optimeter.reports.documents.expression import evaluate
from optimeter.reports.look import configured

Query = dict[str, Any]
TARGET = "quality.steps_to_target"
UNSTEADINESS = "unsteadiness"  # not a name in a record: worked out from its lines


def matches(record: Record, wanted: Query) -> bool:
    """Whether a run meets every condition: of its result, or of its configuration; a list means any of these."""
    return all(_fits(_value_of(record, name), value) for name, value in wanted.items())


def _value_of(record: Record, name: str) -> Any:
    return getattr(record.result, name) if name in names(Result) else configured(record.result, *name.split("."))


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(value, (int, float)) and wanted["at_least"] <= value
    return value == wanted or (isinstance(wanted, list) and value in wanted)


def read(record: Record, expression: str) -> float | None:
    """The value of an expression over a record; `first` and `last` are its first and last sampled lines."""
    if expression == UNSTEADINESS:
        return unsteadiness(record)
    if "first." not in expression and "last." not in expression:
        return worked_out(expression, record.result)
    sampled = [line for line in record.steps() if "update_norm" in line] or [{}]
    lines = {"first": sampled[0], "last": sampled[-1]}
    return evaluate(expression, lambda path: look_up(lines if path[0] in lines else record.result, path))


def worked_out(expression: str, names: object) -> float | None:
    """The value of an expression over nested names."""
    return evaluate(expression, lambda path: look_up(names, path))


def look_up(block: Any, path: Sequence[str]) -> Any:
    """What stands at a path of keys in a record or a line of its steps, or None."""
    for key in path:
        block = block.get(key) if isinstance(block, dict) else getattr(block, key, None)
    return block


def unsteadiness(record: Record) -> float | None:
    """Median change of the training loss between two recorded steps, over their median loss; second half of the run."""
    every = record.result.config.get("record_every") or 1  # sampled steps lie between, of some optimizers more
    lines = (line for line in record.steps() if line["step"] % every == 0)
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    half = losses[len(losses) // 2 :]
    changes = [abs(b - a) for a, b in pairwise(half)]
    return median(changes) / middle if changes and (middle := abs(median(half))) else None
