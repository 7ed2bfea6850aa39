"""What the monitor costs, proved in one run: off and on in turn, beside two controls that show what could be seen.

off/off must come out as nothing and a delay of 2 % must be seen; only then does the figure for the monitor mean
anything, and otherwise the answer is "not resolved", never "none". What the monitor does at every step shows in the
pairs; what it does now and then (norms, the ledger, lines) would vanish in their median, so it is timed and added.
"""

import itertools
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TextIO

import torch

from optimeter.measure.devices import device_for
from optimeter.measure.memory.prediction import to_mode
from optimeter.measure.methods.interleave import Comparison, interleave
from optimeter.measure.methods.settings import Build, Settings, to_device
from optimeter.measure.monitor.monitor import OptimizerMonitor
from optimeter.measure.monitor.sampling import CALIBRATION_STEPS
from optimeter.measure.records.record import to_line
from optimeter.measure.statistics import spread

OFF, ON, ONE, TWO = "off", "on", "+1 %", "+2 %"
PAIRS = [(OFF, OFF + " again"), (OFF, ON), (OFF, ONE), (OFF, TWO)]
SURE = 0.99  # confidence of off/off: at 0.9 one quiet machine in ten would be called restless
PRECISION = 0.005  # half-width of off/off and of off/on at which more pairs are not needed
MOST = 4  # times as many pairs as asked for, if they are needed
BATCHES = 8


class Bench:
    """A training loop whose blocks of steps can be timed with the monitor off, on, or with a known delay."""

    def __init__(self, workload: Any, build: Build, settings: Settings, options: dict[str, Any], sink: TextIO) -> None:
        self.workload, self.device = workload, device_for(settings.device)
        torch.manual_seed(settings.seed)
        self.model = workload.model().to(device=self.device.torch, dtype=settings.dtype)
        self.optimizer = build([(name, p) for name, p in self.model.named_parameters() if p.requires_grad])
        to_mode(self.optimizer, "train")
        batches = itertools.islice(workload.batches("train", settings.seed), BATCHES)
        self.batches = itertools.cycle([to_device(batch, self.device.torch, settings.dtype) for batch in batches])
        self.monitor = OptimizerMonitor(
            self.model,
            self.optimizer,
            sample_every=options["sample_every"],
            on_line=lambda line: sink.write(to_line(line)),  # what lines cost is the monitor's cost
        )
        self.steps, self.step_seconds = 1, 0.0
        with self.monitor:
            self._run(CALIBRATION_STEPS + 8, self.monitor)
        self.step_seconds = spread(self.monitor.timings.seconds["step"][CALIBRATION_STEPS:])["median"]  # type: ignore[index]
        self.steps = max(1, round(options["block_seconds"] / self.step_seconds))

    def _run(self, steps: int, monitor: OptimizerMonitor | None = None, delay: float = 0.0) -> None:
        for _ in range(steps):
            loss = self.workload.loss(self.model, next(self.batches))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if monitor:
                monitor.record(loss)
            if delay:
                self.device.sleep(delay)

    def block(self, monitored: bool = False, delay: float = 0.0) -> Callable[[], float]:
        """A function that runs one block, after one step that does not count, and returns its seconds."""

        def run() -> float:
            monitor = self.monitor if monitored else None
            with self.monitor if monitored else nullcontext():
                self._run(1, monitor, delay)
                self.device.synchronise()
                begin = time.perf_counter()
                self._run(self.steps, monitor, delay)
                self.device.synchronise()
                return time.perf_counter() - begin

        return run

    def sampling_share(self) -> float:
        """Work that is not done at each step, spread over all: what sampling costs, and turning steps into lines."""
        sampled = spread(self.monitor.timings.sampling)["median"] / self.monitor.schedule.every  # type: ignore[index]
        return (sampled + self.monitor.settling_seconds / self.monitor.steps) / self.step_seconds


def overhead(
    workload: Any, build: Build, settings: Settings, options: dict[str, Any], progress: Callable[[tuple], None]
) -> dict[str, Any]:
    """The record's blocks for `measure=overhead`; `overhead` holds every pair and what follows from them."""
    with open(os.devnull, "w") as sink:
        return _overhead(Bench(workload, build, settings, options, sink), settings, options, progress)


def _overhead(
    bench: Bench, settings: Settings, options: dict[str, Any], progress: Callable[[tuple], None]
) -> dict[str, Any]:
    timed = bench.block()
    blocks = {
        OFF: timed,
        OFF + " again": timed,
        ON: bench.block(monitored=True),
        ONE: bench.block(delay=0.01 * bench.step_seconds),
        TWO: bench.block(delay=0.02 * bench.step_seconds),
    }
    total = options["pairs"] * MOST

    def enough(comparisons: list[Comparison]) -> bool:
        made = len(comparisons[0].log_ratios)
        progress((made, total, None))
        intervals = [comparison.interval() for comparison in comparisons[:2]]
        return all((high - low) / 2 <= PRECISION for _, low, high in intervals)

    comparisons = interleave(blocks, PAIRS, options["pairs"], enough, total, settings.seed)
    names = (OFF, ON, ONE, TWO)
    parts = {name: one.block(SURE if name == OFF else 0.9) for name, one in zip(names, comparisons, strict=True)}
    share = bench.sampling_share()
    found: dict[str, Any] = {"block_steps": bench.steps, "step_seconds": bench.step_seconds, "comparisons": parts}
    found |= {"sample_every": bench.monitor.schedule.every, "sampling_share": share}
    summary = bench.monitor.summary()
    return summary | {
        "status": "ok",
        "reason": None,
        "steps": bench.monitor.steps,
        "overhead": found | verdict(parts, share, bench.device.overhead_limit),
        "missing": {"quality": "measure=overhead does not train to an end"},
    }


def verdict(parts: dict[str, dict[str, Any]], sampling_share: float, limit: float) -> dict[str, Any]:
    """Whether the controls came out as they must, and what that allows to be said of the monitor."""
    null, control, on = parts[OFF], parts[TWO], parts[ON]
    low, high = on["low"] + sampling_share, on["high"] + sampling_share
    quiet, seen = null["low"] <= 0 <= null["high"], control["low"] > 0
    if not (quiet and seen):
        why = "off/off is not 0" if not quiet else "a delay of 2 % was not seen"
        return {"resolved": False, "limit": limit, "verdict": f"not resolved: {why}"}
    words = f"the monitor costs at most {high:.2%} of the step time ({low:.2%} to {high:.2%}, 90 % interval)"
    return {"resolved": True, "limit": limit, "low": low, "high": high, "under_limit": high < limit, "verdict": words}
