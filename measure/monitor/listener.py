"""What happens in a training loop, as torch's hooks tell it: each step of the optimizer becomes an Observation."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optimeter.measure.devices import Device
from optimeter.measure.monitor.growth import Growth
from optimeter.measure.monitor.observation import Observation, Span, Value
from optimeter.measure.monitor.sampling import Sampler

STATE_IS_THERE_AFTER = 2  # steps: some optimizers only look at the first gradient
ESTIMATOR = "estimator"  # the phase in which curvature is estimated


class Listener:
    """Watches a model and its optimizer while it is attached, and hands each step that is complete to `take`.

    due: tells whether a step, counted from 1, is sampled.
    steps: how many have begun.
    estimates: spans of all estimates of curvature.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        device: Device,
        sampler: Sampler,
        due: Callable[[int], bool],
        take: Callable[[Observation], object],
    ) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self.sampler, self.allocator = sampler, sampler.allocator
        self.due, self.take = due, take
        self.growth = Growth(sampler.allocator, sampler.weigh)
        self.steps = 0
        self.estimates: list[Span] = []
        self._handles: list[Any] = []
        self._estimates: list[Span] = []  # since the last step
        self._current: Observation | None = None  # being made
        self._stepped: Observation | None = None  # made, waiting for its loss
        self._depth = {"forward": 0, "step": 0}
        self._muted = False
        self._forward_begin: Any = None
        self._backward_begin: Any = None

    def attach(self) -> None:
        """Put the hooks in place."""
        if not self._handles:
            self._handles = [
                self.model.register_forward_pre_hook(self._on_forward_begin),
                self.model.register_forward_hook(self._on_forward_end, always_call=True),
                self.optimizer.register_step_pre_hook(self._on_step_begin),
                self.optimizer.register_step_post_hook(self._on_step_end),
            ]

    def detach(self) -> None:
        """Remove every hook; a step that has been made is complete, one under way is left out."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._complete()
        self._current = self._forward_begin = self._backward_begin = None
        self._depth = {"forward": 0, "step": 0}

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
        step = self._begin_step(now)
        lr = self.optimizer.param_groups[0].get("lr")
        step.lr = lr.clone() if isinstance(lr, Tensor) else lr
        if step.sampled:
            self.sampler.before(step)
        if step.index <= STATE_IS_THERE_AFTER:
            self.growth.begin()
        if step.sampled:
            self.allocator.begin()
        self._host_begin, self._optimizer_begin = time.perf_counter(), self.device.stamp()
        if step.sampled or self.growth.counting:
            step.excluded.append((now, self._optimizer_begin))
        if step.sampled:
            step.sampling.append((now, self._optimizer_begin))

    def _on_step_end(self, *_: Any) -> None:
        self._depth["step"] -= 1
        step = self._current
        if self._depth["step"] or self._muted or step is None:
            return
        now = self.device.stamp()
        step.estimator, self._estimates = self._estimates, []
        step.optimizer, step.host_seconds = (self._optimizer_begin, now), time.perf_counter() - self._host_begin
        self._end_phase("step", self.sampler.scratch_bytes)
        if step.index <= STATE_IS_THERE_AFTER:
            self.growth.end(walk=True)
        if step.sampled:
            self.sampler.after(step)
            step.sampling.append((now, self.device.stamp()))
        self._current, self._stepped, self._backward_begin = None, step, None
        if step.losses:
            self._complete()

    def record(self, loss: Value, **extra: Value) -> None:
        """Take the loss of the step under way, or of the last one; several are averaged.

        If the optimizer's step has not returned, it raised; that step is discarded.
        """
        if self._depth["step"]:
            self._depth["step"], self._current, self.steps = 0, None, self.steps - 1
            return
        step = self._current or self._stepped
        if step is None:
            raise RuntimeError("monitor.record(loss) came before any forward or step; was the monitor entered?")
        if step is self._current and self._has_gradients():
            now = self.device.stamp()
            self._end_backward(now)
            self._after_look(step, now)
        step.losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        step.extra |= extra
        if step is self._stepped:
            self._complete()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Keep what happens inside out of the step; its peak and time are its own."""
        begin, in_backward = self.device.stamp(), self._backward_begin is not None and not self._has_gradients()
        self._end_backward(begin)
        may_begin_state = name == ESTIMATOR and self.steps < STATE_IS_THERE_AFTER
        if may_begin_state:
            self.growth.begin()
        self.allocator.begin()
        self._muted = True
        start = self.device.stamp()
        try:
            yield
        finally:
            span = (start, self.device.stamp())
            self._muted = False
            if may_begin_state:
                self.growth.end()
            self.allocator.phase_ends(name)
            after = self.device.stamp()
            if name == ESTIMATOR:
                self.estimates.append(span)
                self._estimates.append(span)
            if self._current:
                self._current.excluded.append((begin, after))
            self._backward_begin = after if in_backward else None

    # What happens at those events.

    def _begin_step(self, now: Any) -> Observation:
        if self._current is None:
            self._complete()
            self.steps += 1
            self._current = Observation(self.steps, now, self.due(self.steps))
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

    def _after_look(self, step: Observation, now: Any) -> Any:
        """When the next span begins, where the last ended `now`: a look at the allocator between them is in neither."""
        if not step.sampled or self.allocator.reason is not None:
            return now
        again = self.device.stamp()
        step.excluded.append((now, again))
        return again

    def _has_gradients(self) -> bool:
        """Whether a backward has been (unless the last gradients were kept as zeros)."""
        return any(p.grad is not None for p in self.sampler.parameters)

    def _complete(self) -> None:
        """The step that was made has its loss, or will not get one."""
        if self._stepped:
            step, self._stepped = self._stepped, None
            self.take(step)
