"""The measure `energy`: joules of a training step, estimates of curvature included."""

import time
from collections.abc import Iterator
from typing import Any

from meters import NoMeter, meter_for

from optimeter import Findings, Loop, Measure, Trial
from optimeter.measure.methods.arguments import check_whole


class Energy(Measure):
    """Make `steps` training steps between two looks at the device's counter of energy, after `warm_up` steps.

    The counters are coarse and count all that the device does: take steps for some seconds, on a quiet machine.
    """

    def __init__(self, steps: int = 500, warm_up: int = 10) -> None:
        check_whole("steps", steps, 1)
        check_whole("warm_up", warm_up, 0)
        self.steps, self.warm_up = steps, warm_up

    def run(self, trial: Trial) -> Findings:
        loop = Loop(trial.workload, trial.optimizer, trial.settings, trial.device)
        batches = iter(trial.workload.batches("train", trial.settings.seed))
        train(loop, batches, self.warm_up)
        missing = {}
        joules = source = None
        try:
            meter = meter_for(trial.device.torch)
        except NoMeter as reason:
            meter = None
            missing["extra.joules_per_step"] = str(reason)
        begin = time.perf_counter()
        train(loop, batches, self.steps)
        seconds = time.perf_counter() - begin
        if meter:
            joules, source = meter.joules(), meter.source
        return Findings(
            status="ok" if loop.is_finite() else "diverged",
            reason=None if loop.is_finite() else "a parameter is not finite after the last step",
            steps=loop.steps,
            extra={
                "joules_per_step": None if joules is None else joules / self.steps,
                "watts": None if joules is None else joules / seconds,
                "seconds_per_step": seconds / self.steps,
                "source": source,
            },
            missing=missing,
        )

    def line(self, findings: Findings) -> str:
        joules = findings.extra.get("joules_per_step")
        if joules is None:
            return f"energy not known: {findings.missing.get('extra.joules_per_step')}"
        return f"{1e3 * joules:.4g} mJ a step, {findings.extra['watts']:.4g} W by {findings.extra['source']}"


def train(loop: Loop, batches: Iterator[Any], steps: int) -> None:
    """Make some training steps and wait until the device has done them."""
    for _ in range(steps):
        batch = loop.placed(next(batches))
        if loop.curvature_is_due():
            loop.estimate_curvature(batch)
        loop.step([batch])
    loop.device.synchronise()
