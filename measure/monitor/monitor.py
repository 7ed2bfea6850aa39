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

import gc
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optimeter.measure.devices import Device, UnknownDevice, device_for
from optimeter.measure.memory.ledger import Ledger, ledger, parameter_counts
from optimeter.measure.monitor.observation import Observation, Span, Value
from optimeter.measure.monitor.sampling import Sampler, Schedule
from optimeter.measure.records.fields import to_plain
from optimeter.measure.records.schema import Memory, Times
from optimeter.measure.statistics import spread

STATE_IS_THERE_AFTER = 2  # steps: some optimizers only look at the first gradient
TIMED = ("step", "forward", "backward", "optimizer")
ESTIMATOR = "estimator"  # the phase in which curvature is estimated


class OptimizerMonitor:
    """Watches one model and one optimizer; `sample_every` is how often norms are taken, in steps.

    "auto" samples the first 32 steps and then as often as keeps sampling under 0.4 % of the step time. `roles` labels
    further state keys for the memory ledger. `on_line` receives each step's line when it is known, some steps later
    or when the block is left; without it the lines stay in `lines`.
    `device` is what the parameters lie on. Raises ValueError where there is nothing to watch, or no clock for it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        sample_every: int | str = "auto",
        roles: Mapping[str, str] | None = None,
        on_line: Callable[[dict[str, Any]], object] | None = None,
        device: Device | None = None,
    ) -> None:
        self.model, self.optimizer, self.roles = model, optimizer, roles
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("OptimizerMonitor: the model has no trainable parameter")
        try:
            self.device = device or device_for(self.parameters[0].device)
        except UnknownDevice as unknown:
            raise UnknownDevice(f"OptimizerMonitor: {unknown}") from None
        self.allocator = self.device.allocator()
        self.schedule = Schedule(sample_every)
        self.sampler = Sampler(self.parameters, self.allocator, self.ledger, optimizer)
        self.read_back = self.device.read_back()
        self.lines: list[dict[str, Any]] = []
        self.on_line = on_line or self.lines.append
        self.times: dict[str, list[float]] = {name: [] for name in (*TIMED, "optimizer_host")}
        self.phases: dict[str, list[Span]] = {}
        self.sampling: list[float] = []  # seconds that each look at norms and memory took
        self.settling_seconds = 0.0  # spent on turning steps into lines, all in all
        self.steps = 0
        self.elapsed: float | None = 0.0  # seconds of all steps read back so far, estimates too, if they could be told
        self.allocator_state_bytes: int | None = None  # what the first steps allocated and left
        self.walked_bytes: dict[str, int] = {}  # by type of device, after the same steps
        self._held: int | None = None
        self._handles: list[Any] = []
        self._estimates: list[Span] = []  # since the last step
        self._current: Observation | None = None  # being made
        self._stepped: Observation | None = None  # made, waiting for its loss
        self._depth = {"forward": 0, "step": 0}
        self._muted = False
        self._forward_begin: Any = None
        self._backward_begin: Any = None

    def __enter__(self) -> "OptimizerMonitor":
        if not self._handles:
            self._handles = [
                self.model.register_forward_pre_hook(self._on_forward_begin),
                self.model.register_forward_hook(self._on_forward_end, always_call=True),
                self.optimizer.register_step_pre_hook(self._on_step_begin),
                self.optimizer.register_step_post_hook(self._on_step_end),
            ]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove every hook and read back what is still on the device."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._complete()
        self._current = self._forward_begin = self._backward_begin = None
        self._depth = {"forward": 0, "step": 0}
        self.settle(wait=True)

    # The events of the loop, in the order in which a step brings them.

    def _on_forward_begin(self, *_: Any) -> None:
        self._depth["forward"] += 1
        if self._depth["forward"] > 1 or self._muted or not torch.is_grad_enabled():
            return
        if self._depth["step"] and self._current:
            self._current.closure = True
        now = self.device.stamp()
        self._end_backward(now)
        self._forward_begin = self._after_look(self._begin_step(now), now)

    def _on_forward_end(self, *_: Any) -> None:
        self._depth["forward"] -= 1
        if self._depth["forward"] or self._current is None or self._forward_begin is None:
            return
        now = self.device.stamp()
        self._current.forward.append((self._forward_begin, now))
        self._end_phase("forward")
        self._forward_begin, self._backward_begin = None, self._after_look(self._current, now)

    def _on_step_begin(self, *_: Any) -> None:
        self._depth["step"] += 1
        if self._depth["step"] > 1 or self._muted:  # where a subclass's step calls its parent's, hooks fire twice
            return
        now = self.device.stamp()
        self._end_backward(now)
        one = self._begin_step(now)
        lr = self.optimizer.param_groups[0].get("lr")
        one.lr = lr.clone() if isinstance(lr, Tensor) else lr
        if one.sampled:
            self.sampler.before(one)
        self._held = self._held_before() if one.index <= STATE_IS_THERE_AFTER else None
        if one.sampled:
            self.allocator.begin()
        self._host_begin, self._optimizer_begin = time.perf_counter(), self.device.stamp()
        if one.sampled or self._held is not None:
            one.excluded.append((now, self._optimizer_begin))
        if one.sampled:
            one.sampling.append((now, self._optimizer_begin))

    def _on_step_end(self, *_: Any) -> None:
        self._depth["step"] -= 1
        one = self._current
        if self._depth["step"] or self._muted or one is None:
            return
        now = self.device.stamp()
        one.estimator, self._estimates = self._estimates, []
        one.optimizer, one.host_seconds = (self._optimizer_begin, now), time.perf_counter() - self._host_begin
        self._end_phase("step", self.sampler.scratch_bytes)
        if self._held is not None:
            grown = (self.allocator.held(settled=True) or 0) - self._held
            self.allocator_state_bytes = (self.allocator_state_bytes or 0) + grown
            self.walked_bytes = self.ledger().by_device
        if one.sampled:
            self.sampler.after(one)
            one.sampling.append((now, self.device.stamp()))
        self._current, self._stepped, self._backward_begin = None, one, None
        if one.losses:
            self._complete()

    def record(self, loss: Value, **extra: Value) -> None:
        """Say what the loss was, once a step, before or after the optimizer's step; `extra` is recorded beside it.

        With gradient accumulation it may be called for each part; the line has the mean. Not for inside a closure: a
        step under way here is one that raised, and is left out.
        """
        if self._depth["step"]:
            self._depth["step"], self._current, self.steps = 0, None, self.steps - 1
            return
        one = self._current or self._stepped
        if one is None:
            raise RuntimeError("monitor.record(loss) came before any forward or step; was the monitor entered?")
        if one is self._current and self._has_gradients():
            now = self.device.stamp()
            self._end_backward(now)
            self._after_look(one, now)
        one.losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        one.extra |= extra
        if one is self._stepped:
            self._complete()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Keep what happens inside ("evaluation", "estimator") out of the step; its peak and time are its own."""
        begin, in_backward = self.device.stamp(), self._backward_begin is not None and not self._has_gradients()
        self._end_backward(begin)
        may_begin_state = name == ESTIMATOR and self.steps < STATE_IS_THERE_AFTER
        held = self._held_before() if may_begin_state else None
        self.allocator.begin()
        self._muted = True
        start = self.device.stamp()
        try:
            yield
        finally:
            span = (start, self.device.stamp())
            self._muted = False
            if held is not None:
                grown = (self.allocator.held(settled=True) or 0) - held
                self.allocator_state_bytes = (self.allocator_state_bytes or 0) + grown
            self.allocator.phase_ends(name)
            after = self.device.stamp()
            self.phases.setdefault(name, []).append(span)
            if name == ESTIMATOR:
                self._estimates.append(span)
            if self._current:
                self._current.excluded.append((begin, after))
            self._backward_begin = after if in_backward else None

    # What happens at those events.

    def _held_before(self) -> int | None:
        """What the allocator holds before state may be made; garbage is gone that might be freed meanwhile."""
        if self.allocator.reason is not None:
            return None
        gc.collect()
        return self.allocator.held(settled=True)

    def _begin_step(self, now: Any) -> Observation:
        if self._current is None:
            self._complete()
            self.steps += 1
            self._current = Observation(self.steps, now, self.schedule.due(self.steps))
            if self._current.sampled:
                self.allocator.begin()
        return self._current

    def _end_backward(self, now: Any) -> None:
        if self._current and self._backward_begin is not None:
            self._current.backward.append((self._backward_begin, now))
            self._backward_begin = None
            self._end_phase("backward")

    def _end_phase(self, name: str, scratch: int = 0) -> None:
        if self._current and self._current.sampled:
            self.allocator.phase_ends(name, scratch)

    def _after_look(self, one: Observation, now: Any) -> Any:
        """When the next span begins, where the last ended `now`: a look at the allocator between them is in neither."""
        if not one.sampled or self.allocator.reason is not None:
            return now
        again = self.device.stamp()
        one.excluded.append((now, again))
        return again

    def _has_gradients(self) -> bool:
        """Whether a backward has been (unless the last gradients were kept as zeros)."""
        return any(p.grad is not None for p in self.parameters)

    def _complete(self) -> None:
        """The step has its loss, or will not get one."""
        if self._stepped:
            self.read_back.add(self._stepped)
            self._stepped = None
            if self.read_back.ready():
                self.settle()

    def settle(self, wait: bool = False) -> None:
        """Turn the steps whose values have arrived into lines and times; `wait` for all of them."""
        begin, waited = time.perf_counter(), self.read_back.waited_seconds
        for one in self.read_back.collect(wait):
            durations = one.durations(self.device)
            for name in TIMED:
                if (seconds := durations[name]) is not None:
                    self.times[name].append(seconds)
            self.times["optimizer_host"].append(one.host_seconds)
            step = durations["step"]
            if one.sampled:
                self.sampling.append(durations["sampling"] or 0.0)
                self.schedule.learn(self.sampling[-1], step or one.host_seconds)
            spent = None if step is None else step + (durations["estimator"] or 0.0)
            self.elapsed = None if spent is None or self.elapsed is None else self.elapsed + spent
            self.on_line({**one.line(durations), "elapsed": self.elapsed})
        waited = self.read_back.waited_seconds - waited  # for the device, which does the loop's work meanwhile
        self.settling_seconds += time.perf_counter() - begin - waited

    # What it found.

    def missing(self) -> dict[str, str]:
        """Why times of the record are null, by their path."""
        empty = [name for name in TIMED if self.steps and not self.times[name]]
        reason = "the step calls a closure" if "optimizer" in empty else "no forward of the model was seen"
        return {f"time.{name}": reason for name in empty}

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
            allocator_state_bytes=self.allocator_state_bytes if counted else None,
            gradient_bytes=self.sampler.gradient_bytes,
            transient_bytes=self.allocator.transient(),
            peak_bytes=self.allocator.peaks(),
            peak_source="allocator" if counted else None,
            process_peak_bytes=process_peak_bytes(),
        )

    def timing(self) -> Times:
        """How long the steps took, the first ones left out; steps under way are read back first."""
        self.settle(wait=True)
        spreads = {name: spread(values[warm_up(len(values)) :]) for name, values in self.times.items()}
        step, optimizer = spreads["step"], spreads["optimizer"]
        estimates = [self.device.seconds(*span) for span in self.phases.get(ESTIMATOR, [])]
        return Times(
            step=step,
            forward=spreads["forward"],
            backward=spreads["backward"],
            optimizer=optimizer,
            optimizer_host=None if self.device.host_waits else spreads["optimizer_host"],
            estimator=spread(estimates),
            first_step=self.times["step"][0] if self.times["step"] else None,
            optimizer_share=optimizer.median / step.median if step and optimizer else None,
        )

    def plot(self, path: str | Path) -> None:
        """Draw the trends of what was recorded: loss, gradient norm, memory and moment memory over the steps."""
        from optimeter.measure.records.trends import draw_trends  # matplotlib takes half a second to import

        self.settle(wait=True)
        draw_trends(self.lines, path)


def warm_up(steps: int) -> int:
    """How many of the first steps do not count: a tenth, at least one, at most fifty."""
    return min(max(steps // 10, 1), 50) if steps > 1 else 0


def process_peak_bytes() -> int:
    """The most memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
