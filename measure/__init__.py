"""Measuring: the monitor, the memory ledger, the run loop, records, isolation. Nothing here imports Hydra."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimeter.measure.monitor.monitor import OptimizerMonitor as OptimizerMonitor

__all__ = ["OptimizerMonitor"]


def __getattr__(name: str) -> object:
    """Import the monitor, and torch with it, only when it is asked for: records are read without them."""
    if name != "OptimizerMonitor":
        raise AttributeError(f"module 'optimeter.measure' has no attribute {name!r}")
    from optimeter.measure.monitor.monitor import OptimizerMonitor

    return OptimizerMonitor
