"""Of which measure a record is: told by what it holds, since a YAML of anybody's may give a measure any name."""

from optimeter.measure.records.fields import is_empty
from optimeter.measure.records.schema import Result
from optimeter.reports.look import configured

# Measure → the block that it fills, and its class.
BLOCKS = {"train": "quality", "step": "step", "plan": "plan", "overhead": "overhead"}
CLASSES = {"train": "Train", "step": "Step", "plan": "Plan", "overhead": "Overhead"}
METHODS = "optimeter.measure.methods."


def is_of(run: Result, measure: str) -> bool:
    """Whether a run is of this measure: it has its block, or failed before and its configuration names the class.

    Of a measure that is not the project's nothing is known but the name.
    """
    if measure not in BLOCKS:
        return run.measure == measure
    if not is_empty(getattr(run, BLOCKS[measure])):
        return True
    target = str(configured(run, "measure", "_target_"))
    return target.startswith(METHODS) and target.rpartition(".")[2] == CLASSES[measure]
