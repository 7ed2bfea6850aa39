"""OptimizerMonitor: what an optimizer costs and does, in anybody's training loop.

    with OptimizerMonitor(model, optimizer) as monitor:
        for batch in batches:
            …; loss.backward(); optimizer.step(); optimizer.zero_grad()
            monitor.record(loss)
    monitor.summary(); monitor.plot("trends.png")

It listens through torch's hooks, reads nothing back to the host inside the loop on CUDA, and when it is left not one
hook stays. Forward time is the outermost model's; backward time runs from there to `record(loss)` or the optimizer's
step, whichever comes first, and is summed over gradient accumulation.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from optimeter.measure.devices import Device
from optimeter.measure.memory.ledger import Ledger, ledger, parameter_counts
from optimeter.measure.memory.process import process_peak_bytes
from optimeter.measure.monitor.listener import Listener
from optimeter.measure.monitor.observation import Observation, Value
from optimeter.measure.monitor.placement import device_of
from optimeter.measure.monitor.sampling import Sampler, Schedule
from optimeter.measure.monitor.timings import Timings
from optimeter.measure.records.fields import to_plain
from optimeter.measure.records.schema import Memory, Times


class OptimizerMonitor:
    """Watches one model and one optimizer; `sample_every` is how often norms are taken, in steps.

    "auto" samples the first 32 steps and then as often as keeps sampling under 0.4 % of the step time. `roles` labels
    further state keys for the memory ledger. `on_line` receives each step's line when it is known, some steps later
    or when the block is left; without it the lines stay in `lines`. `device` is where the model lies (a name, a
    torch.device, a Device), by itself where it is left out. Raises ValueError where there is nothing to watch, for a
    model that lies on several devices or elsewhere, and for a device that is not known.

    settling_seconds: spent on turning steps into lines, all in all.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        sample_every: int | str = "auto",
        roles: Mapping[str, str] | None = None,
        on_line: Callable[[dict[str, Any]], object] | None = None,
        device: Device | str | torch.device | None = None,
    ) -> None:
        self.model, self.optimizer, self.roles = model, optimizer, roles
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("OptimizerMonitor: the model has no trainable parameter")
        try:
            self.device = device_of(model, device)
        except ValueError as refusal:
            raise type(refusal)(f"OptimizerMonitor: {refusal}") from None
        self.allocator = self.device.allocator()
        self.schedule = Schedule(sample_every)
        self.sampler = Sampler(self.parameters, self.allocator, self.ledger, optimizer)
        self.listener = Listener(model, optimizer, self.device, self.sampler, self.schedule.due, self._take)
        self.read_back = self.device.read_back()
        self.timings = Timings(self.device)
        self.settling_seconds = 0.0
        self.lines: list[dict[str, Any]] = []
        self.on_line = on_line or self.lines.append

    def __enter__(self) -> "OptimizerMonitor":
        self.listener.attach()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove every hook and read back what is still on the device."""
        self.listener.detach()
        self.settle(wait=True)

    def record(self, loss: Value, **extra: Value) -> None:
        """Say what the loss was, once a step, before or after the optimizer's step; `extra` is recorded beside it.

        With gradient accumulation it may be called for each part; the line has the mean. Do not call it from a
        closure: a step under way here is taken for one that raised, and is left out.
        """
        self.listener.record(loss, **extra)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Keep what happens inside ("evaluation", "estimator") out of the step; its peak and time are its own."""
        return self.listener.phase(name)

    @property
    def steps(self) -> int:
        """How many steps were seen."""
        return self.listener.steps

    @property
    def elapsed(self) -> float | None:
        """Seconds of all steps read back so far, estimates too; None where they could not be told."""
        return self.timings.elapsed

    @property
    def walked_bytes(self) -> dict[str, int]:
        """The state after the steps that the allocator's count is of, by type of device; empty without that count."""
        return self.listener.growth.walked

    def _take(self, step: Observation) -> None:
        """A step is complete."""
        self.read_back.add(step)
        if self.read_back.ready():
            self.settle()

    def settle(self, wait: bool = False) -> None:
        """Turn the steps whose values have arrived into lines and times; `wait` for all of them."""
        begin, waited = time.perf_counter(), self.read_back.waited_seconds
        for step in self.read_back.collect(wait):
            durations = self.timings.add(step)
            if step.sampled:
                self.schedule.learn(self.timings.sampling[-1], durations["step"] or step.host_seconds)
            self.on_line({**step.line(durations), "elapsed": self.elapsed})
        waited = self.read_back.waited_seconds - waited  # for the device, which does the loop's work meanwhile
        self.settling_seconds += time.perf_counter() - begin - waited

    def ledger(self) -> Ledger:
        """What the optimizer holds now."""
        return ledger(self.optimizer, self.model, self.roles)

    def summary(self) -> dict[str, Any]:
        """The record's blocks `parameters`, `memory` and `time`; steps under way are read back first."""
        blocks = {"parameters": parameter_counts(self.model), "memory": self.memory(), "time": self.timing()}
        return {name: to_plain(block) for name, block in blocks.items()}

    def memory(self) -> Memory:
        """What the optimizer holds now, and the peaks so far; steps under way are read back first."""
        self.settle(wait=True)
        counted = self.allocator.reason is None
        return Memory.of(
            self.ledger(),
            sum(p.numel() for p in self.parameters),
            allocator_state_bytes=self.listener.growth.bytes if counted else None,
            gradient_bytes=self.sampler.gradient_bytes,
            transient_bytes=self.allocator.transient(),
            peak_bytes=self.allocator.peaks(),
            peak_source="allocator" if counted else None,
            process_peak_bytes=process_peak_bytes(),
        )

    def timing(self) -> Times:
        """How long the steps took, the first ones left out; steps under way are read back first."""
        self.settle(wait=True)
        return self.timings.block(self.listener.estimates)

    def missing(self) -> dict[str, str]:
        """Why times of the record are null, by their path."""
        return self.timings.missing() if self.steps else {}

    def plot(self, path: str | Path) -> None:
        """Draw the trends of what was recorded: loss, gradient norm, memory and moment memory over the steps."""
        from optimeter.measure.records.trends import draw_trends  # matplotlib takes half a second to import

        self.settle(wait=True)
        draw_trends(self.lines, path)
