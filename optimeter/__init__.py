"""Optimeter: what an optimizer costs and what it buys.

    from optimeter import OptimizerMonitor, load, plan, optimizers

Each name is imported when it is asked for. The rooms stand at the top of the repository; this folder links to them.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimeter import optimizers as optimizers
    from optimeter import workloads as workloads
    from optimeter.measure.devices import Device as Device
    from optimeter.measure.methods.base import Measure as Measure
    from optimeter.measure.methods.base import Trial as Trial
    from optimeter.measure.methods.loop import Loop as Loop
    from optimeter.measure.methods.plan import plan as plan
    from optimeter.measure.monitor.monitor import OptimizerMonitor as OptimizerMonitor
    from optimeter.measure.records.read import Record as Record
    from optimeter.measure.records.schema import Findings as Findings
    from optimeter.reports.table import Cell as Cell
    from optimeter.reports.table import Table as Table
    from optimeter.workloads import Workload as Workload

# Name → the module that it stands in, and what it is called there; an empty name is the module itself.
NEED_TORCH = {
    "Device": ("optimeter.measure.devices", "Device"),
    "Loop": ("optimeter.measure.methods.loop", "Loop"),
    "Measure": ("optimeter.measure.methods.base", "Measure"),
    "OptimizerMonitor": ("optimeter.measure.monitor.monitor", "OptimizerMonitor"),
    "Trial": ("optimeter.measure.methods.base", "Trial"),
    "Workload": ("optimeter.workloads", "Workload"),
    "optimizers": ("optimeter.optimizers", ""),
    "plan": ("optimeter.measure.methods.plan", "plan"),
    "workloads": ("optimeter.workloads", ""),
}
WITHOUT_TORCH = {
    "Cell": ("optimeter.reports.table", "Cell"),
    "Findings": ("optimeter.measure.records.schema", "Findings"),
    "Record": ("optimeter.measure.records.read", "Record"),
    "Table": ("optimeter.reports.table", "Table"),
}
PUBLIC = NEED_TORCH | WITHOUT_TORCH

__all__ = [
    "Cell",
    "Device",
    "Findings",
    "Loop",
    "Measure",
    "OptimizerMonitor",
    "Record",
    "Table",
    "Trial",
    "Workload",
    "load",
    "optimizers",
    "plan",
    "workloads",
]


def load(folder: str | Path) -> "list[Record]":
    """The records that lie anywhere under `folder`, such as "runs" or "runs/NAME"; what is none is named on stderr."""
    from optimeter.measure.records.read import read_records

    return read_records(Path(folder))


def _import_installed_torch() -> None:
    """Import torch from where it is installed, also in a folder that has a file torch.py.

    An interactive session, `python -c` and `python -m` look into the working folder before all else, and a script into
    its own. For this one import that folder is passed over; torch that is nowhere else is found by whoever needs it.
    """
    if "torch" in sys.modules or not sys.path:
        return
    first = sys.path[0]
    if first not in ("", os.getcwd()) and not Path(first, "torch.py").exists():
        return
    del sys.path[0]
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        pass
    finally:
        sys.path.insert(0, first)


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in PUBLIC:
            raise AttributeError(f"module 'optimeter' has no attribute {name!r}")
        if name in NEED_TORCH:
            _import_installed_torch()
        module, attribute = PUBLIC[name]
        found = import_module(module)
        globals()[name] = value = getattr(found, attribute) if attribute else found
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
