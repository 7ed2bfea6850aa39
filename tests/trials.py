"""Trials as the harness makes them, for the tests of the ways to measure."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from optimeter.measure.devices import device_for
from optimeter.measure.methods.base import Recipe, Trial
from optimeter.measure.methods.settings import Settings
from optimeter.measure.methods.train import Train
from optimeter.measure.records.schema import Findings
from optimeter.workloads import Workload

SAID = ("cls", "closure", "hessian_every", "gradients", "roles")  # of the optimizer; everything else is how to train


def ignored(news: Any) -> None:
    """Nobody listens."""


def trial(
    workload: Workload,
    build: Callable[[Any], Optimizer],
    write: Callable[[dict[str, Any]], object] = ignored,
    progress: Callable[[Any], object] = ignored,
    others: dict[str, Recipe] | None = None,
    device: str = "cpu",
    **settings: Any,
) -> Trial:
    """A trial; `build` takes (name, parameter) pairs."""
    said = {key: settings.pop(key) for key in SAID if key in settings}
    return Trial(
        workload=workload,
        optimizer=Recipe("it", build, **said),
        settings=Settings(**{"steps": workload.steps} | settings),
        device=device_for(device),
        others=others or {},
        write=write,
        progress=progress,
    )


def train(workload: Workload, build: Callable[[Any], Optimizer], *args: Any, **settings: Any) -> Findings:
    """What training finds."""
    return Train().run(trial(workload, build, *args, **settings))
