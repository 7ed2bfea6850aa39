"""The ways to measure, each a class named by `_target_` in conf/measure, and the training loop that they share."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimeter.measure.methods.base import Measure as Measure
    from optimeter.measure.methods.base import Recipe as Recipe
    from optimeter.measure.methods.base import Trial as Trial
    from optimeter.measure.methods.loop import Loop as Loop
    from optimeter.measure.methods.overhead import Overhead as Overhead
    from optimeter.measure.methods.plan import Plan as Plan
    from optimeter.measure.methods.settings import Settings as Settings
    from optimeter.measure.methods.step import Step as Step
    from optimeter.measure.methods.train import Train as Train

FILES = {
    "Loop": "loop",
    "Measure": "base",
    "Overhead": "overhead",
    "Plan": "plan",
    "Recipe": "base",
    "Settings": "settings",
    "Step": "step",
    "Train": "train",
    "Trial": "base",
}
__all__ = sorted(FILES)


def __getattr__(name: str) -> Any:
    """Import what is asked for, and torch with it, only then."""
    if name not in FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{FILES[name]}"), name)
