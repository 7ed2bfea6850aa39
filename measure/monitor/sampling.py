"""The looks that cost something: norms of gradients, weights and updates, and the walk through the state."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.optim import Optimizer

from optimeter.measure.devices import Allocator
from optimeter.measure.memory.ledger import Ledger, tensor_bytes
from optimeter.measure.monitor import probe
from optimeter.measure.monitor.observation import Observation

CALIBRATION_STEPS = 32  # all sampled; what they cost decides how often the later ones are
BUDGET = 0.004  # share of the step time that sampling may take
Rest = tuple[Tensor, Any, Tensor, Tensor]  # parameter, name of the moment (None: itself), glimpse of it, rows at rest
LEDGER_EVERY = 4  # samples between two walks through the state


class Schedule:
    """Which steps are sampled: every n-th; or all until their cost is known, and then as many as the budget buys."""

    def __init__(self, every: int | str) -> None:
        if every != "auto" and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
            raise ValueError(f"sample_every must be 'auto' or a whole number of at least 1, not {every!r}")
        self.every = 1 if every == "auto" else int(every)
        self.costs: list[tuple[float, float]] | None = [] if every == "auto" else None

    def due(self, index: int) -> bool:
        """Whether step `index`, counted from 1, is sampled; none while what sampling costs is still on its way."""
        if self.costs is not None and index > CALIBRATION_STEPS:
            return False
        return (index - 1) % self.every == 0

    def learn(self, sampling_seconds: float, step_seconds: float) -> None:
        """Take in what sampling one step cost; after enough of them, settle on an interval of 1, 2, 5, 10, 20 …"""
        if self.costs is None:
            return
        self.costs.append((sampling_seconds, step_seconds))
        if len(self.costs) == CALIBRATION_STEPS:
            sampling, step = (sorted(column)[CALIBRATION_STEPS // 2] for column in zip(*self.costs, strict=True))
            needed = sampling / max(step, 1e-9) / BUDGET
            self.every = next(n * 10**k for k in range(9) for n in (1, 2, 5) if n * 10**k >= needed)
            self.costs = None


class Sampler:
    """Looks at the gradients before a sampled step and at the weights, the state and the memory after it."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        allocator: Allocator,
        weigh: Callable[[], Ledger],
        optimizer: Optimizer,
    ) -> None:
        self.parameters, self.allocator, self.weigh, self.optimizer = parameters, allocator, weigh, optimizer
        self.gradient_bytes = 0
        self.state_bytes: list[int] = []  # at each walk
        self._samples = 0
        self._before: list[Tensor] = []
        self._at_rest: list[Rest] = []
        self._process = psutil.Process()

    def before(self, one: Observation) -> None:
        """Gradients are there, the step is not made."""
        with self.allocator.aside():
            self._gradients(one)
            self._before = probe.glimpse(self.parameters)
            self._at_rest = [rest for p in self.parameters for rest in self._resting(p)]

    def _resting(self, p: Tensor) -> Iterator[Rest]:
        """What a sparse gradient leaves alone: of `p` itself, and of each of its moments."""
        if p.grad is None or not p.grad.is_sparse:
            return
        resting = probe.rows_at_rest(p)
        for name in (None, *(self.optimizer.state.get(p) or ())):
            if (held := self._held(p, name)) is not None:
                yield p, name, probe.glimpse([held])[0], resting

    def _held(self, p: Tensor, name: Any) -> Tensor | None:
        """The parameter (None) or the moment of this name, where it has the parameter's shape."""
        held = p if name is None else (self.optimizer.state.get(p) or {}).get(name)
        if not isinstance(held, Tensor) or held.layout != torch.strided:
            return None
        return held if (held.shape, held.device) == (p.shape, p.device) else None

    def _strayed(self) -> dict[str, Tensor]:
        """How many elements of parameters, and of moments, changed though their rows had no gradient."""
        counts: dict[str, list[Tensor]] = {"strayed": [], "strayed_moments": []}
        for p, name, before, resting in self._at_rest:
            if (held := self._held(p, name)) is not None:
                count = probe.strayed(held, before, resting)
                counts["strayed" if name is None else "strayed_moments"].append(count.to(self.parameters[0].device))
        return {name: torch.stack(found).sum() for name, found in counts.items() if found}

    @property
    def scratch_bytes(self) -> int:
        """What is held from before the step until after it."""
        return tensor_bytes([*self._before, *(tensor for rest in self._at_rest for tensor in rest[2:])])

    def _gradients(self, one: Observation) -> None:
        self.gradient_bytes = max(self.gradient_bytes, tensor_bytes(p.grad for p in self.parameters))
        gradients = probe.gradients_of(self.parameters)
        one.gradient_elements = sum(g.numel() for g in gradients)
        if gradients:
            one.values |= probe.gradient_statistics(gradients)

    def after(self, one: Observation) -> None:
        """The step is made."""
        with self.allocator.aside():
            self._after(one)

    def _after(self, one: Observation) -> None:
        if one.closure:  # the gradients of this step came only now
            self._gradients(one)
        one.values["weight_norm"] = probe.norm([p.detach() for p in self.parameters])
        one.values |= probe.change(self.parameters, self._before)
        if not one.closure:  # whose gradients, and rows, came only after the first look
            one.values |= self._strayed()
        self._before, self._at_rest = [], []
        if self._samples < LEDGER_EVERY or self._samples % LEDGER_EVERY == 0:
            held = self.weigh()
            self.state_bytes.append(held.state_bytes)
            one.memory = {"state": held.by_role, "gradients": self.gradient_bytes, "allocated": self.allocator.held()}
            one.memory["process"] = self._process.memory_info().rss
        self._samples += 1
