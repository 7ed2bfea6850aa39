"""The context of a training run: is it going worse, as usual, or better than its own recent past?

Two signals are watched over the last `context_window` steps: the losses, where they are reported, and the gradient's
consistency, the cosine of the directions of two consecutive gradients. For each, the mean of the last ten entries is
compared with the mean of the earlier ones, in standard errors; minibatch cosines are near 0, so only a change against
their own running level says anything. Both together (Stouffer's method) make one z-score of trouble.

An *edge case* is trouble beyond chance: z above the quantile of the normal distribution at `edge_threshold`, so 0.95
lets one calm step in twenty look like one, and a lower threshold reacts sooner. The learning rate's multiplier moves
by the share `adaptation_rate` a step towards its target: 0.5 + 0.3 · consistency at an edge, 1.2 where things go
better by as much, else 1. All of it lives in small tensors on the device: nothing is read back unless a public method
is called.

Document 001 names arXiv:2411.16085 as its source; that paper (Cautious Optimizers) is about something else.
"""

import warnings
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from optimeter.optimizers.core.storage import hash32

SKETCH = 4096  # elements of the gradient that stand for all of them; a model with fewer is compared whole
RECENT = 10
EDGE, STEADY, USUAL = (0.5, 0.3), 1.2, 1.0  # targets of the multiplier; EDGE: (at consistency 0, for each unit of it)
LOWEST, HIGHEST = 0.1, 2.0
TINY = 1e-30
KEPT = ("previous", "cosines", "losses", "multiplier", "edge", "cosines_seen", "losses_seen")


class Context:
    """What the last steps were like; made and fed by the optimizer, asked by anyone.

    Holds 8 bytes for each entry of the window, and 16 KiB of the last gradient with 48 KiB to say where it is sampled.
    """

    previous: Tensor | None = None  # the last direction, of length 1
    cosines: Tensor  # (window,), newest last
    losses: Tensor
    multiplier: Tensor  # 0-dimensional
    edge: Tensor

    def __init__(self) -> None:
        self.cosines_seen = self.losses_seen = 0
        self.reported: Any = None
        self.warned = False
        self.sizes: tuple[int, ...] = ()
        self.samples: list[Tensor | None] = []  # for each parameter, which elements; None: all
        self.weights: Tensor | None = None  # (SKETCH,): what makes the sample's cosine that of the whole, on average

    def detect_edge_case(self) -> bool:
        """Whether the last step was an edge case; False until there is a past to compare with."""
        return self.previous is not None and bool(self.edge)

    def compute_contextual_lr_multiplier(self) -> float:
        """What the learning rates are multiplied with, in [0.1, 2]; 1 before the first step."""
        return 1.0 if self.previous is None else float(self.multiplier)

    def compute_gradient_consistency(self) -> float:
        """The mean cosine of consecutive gradients' directions over the last ten steps; 1 before there are two."""
        return float(self.cosines[-min(RECENT, self.cosines_seen) :].mean()) if self.cosines_seen else 1.0

    def compute_loss_stability(self) -> float:
        """exp(−std/mean) of the last ten losses, in [0, 1]; 1 before there are ten."""
        if self.losses_seen < RECENT:
            return 1.0
        last = self.losses[-RECENT:]
        return float((-last.std() / (last.mean().abs() + TINY)).exp())

    def report_loss(self, loss: Any) -> None:
        """The loss of the coming step, a tensor of one element or a number; the last one before the step counts."""
        self.reported = loss.detach() if isinstance(loss, Tensor) else loss

    def take_loss(self, name: str) -> Any:
        """The loss reported for this step; where there is none, say once that gradients must do."""
        loss, self.reported = self.reported, None
        if loss is None and not self.warned:
            self.warned = True
            warnings.warn(
                f"{name}: no loss was reported, so the context watches the gradients alone; "
                "call optimizer.report_loss(loss) before step(), or give step() a closure",
                stacklevel=6,  # the caller of step(), under torch's two wrappers
            )
        return loss

    def update_context(
        self, direction: Tensor, loss: Any, *, context_window: int, edge_threshold: float, adaptation_rate: float
    ) -> None:
        """One step's gradient direction (see `direction`) and its loss, or None."""
        if self.previous is None:
            self._start(direction, context_window)
        else:
            self.cosines = pushed(self.cosines, direction.dot(self.previous))
            self.cosines_seen += 1
        self.previous = direction
        if loss is not None:
            value = torch.as_tensor(loss, dtype=direction.dtype, device=direction.device).reshape(())
            self.losses = pushed(self.losses, value.where(value.isfinite(), self.losses[-1]))
            self.losses_seen += 1
        evidence = [excess(self.losses, self.losses_seen), excess(-self.cosines, self.cosines_seen)]
        known = [z for z in evidence if z is not None]
        if known:
            self._judge(sum(known[1:], known[0]) / len(known) ** 0.5, edge_threshold, adaptation_rate)

    def _start(self, like: Tensor, window: int) -> None:
        self.cosines, self.losses = like.new_zeros(window), like.new_zeros(window)
        self.multiplier, self.edge = like.new_ones(()), torch.zeros((), dtype=torch.bool, device=like.device)

    def _judge(self, z: Tensor, edge_threshold: float, adaptation_rate: float) -> None:
        border = quantile(edge_threshold)
        self.edge = z > border
        careful = self.cosines[-RECENT:].mean() * EDGE[1] + EDGE[0]
        target = careful.where(self.edge, torch.full_like(z, STEADY).where(z < -abs(border), USUAL))
        self.multiplier = self.multiplier.lerp(target, adaptation_rate).clamp(LOWEST, HIGHEST)

    def direction(self, parameters: Sequence[Tensor], seed: int) -> Tensor:
        """The gradient of all parameters as a vector of length 1, or a fixed random sample of its elements."""
        sizes = tuple(p.numel() for p in parameters)
        if sizes != self.sizes:
            self._draw(parameters, sizes, seed)
        device, dtype = parameters[0].device, torch.float64 if parameters[0].dtype == torch.float64 else torch.float32
        parts = []
        for p, sample in zip(parameters, self.samples, strict=True):
            whole = p.new_zeros(p.shape) if p.grad is None else p.grad
            part = whole.reshape(-1) if sample is None else whole.reshape(-1).index_select(0, sample)
            parts.append(part.to(device, dtype))
        sketch = torch.cat(parts).nan_to_num_(0.0, 0.0, 0.0)
        if self.weights is not None:
            sketch.mul_(self.weights)
        return sketch.div_(sketch.norm().clamp(min=TINY))

    def _draw(self, parameters: Sequence[Tensor], sizes: tuple[int, ...], seed: int) -> None:
        """Draw each parameter's share of the sample; directions of another sample do not compare."""
        total, resumed, self.sizes = max(sum(sizes), 1), not self.sizes, sizes
        counts = [n if total <= SKETCH else -(-n * SKETCH // total) for n in sizes]
        self.samples, weights = [], []
        for index, (p, n, count) in enumerate(zip(parameters, sizes, counts, strict=True)):
            whole = count == n
            place = torch.arange(count, dtype=torch.int32, device=p.device)
            self.samples.append(None if whole else (hash32(place, (seed, index, 0)).long() & 0xFFFFFFFF) % n)
            weights.append(torch.full((count,), (n / max(count, 1)) ** 0.5, device=parameters[0].device))
        self.weights = None if total <= SKETCH else torch.cat(weights)
        if self.previous is not None and not (resumed and len(self.previous) == sum(counts)):
            self.previous = self.previous.new_zeros(sum(counts))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on: tensors and numbers."""
        return {} if self.previous is None else {name: getattr(self, name) for name in KEPT}

    def load_state_dict(self, saved: dict[str, Any], device: torch.device) -> None:
        """Go on where `state_dict` was taken; an empty one is a fresh start."""
        self.__dict__.pop("previous", None)
        self.cosines_seen = self.losses_seen = 0
        for name, value in saved.items():
            setattr(self, name, value.to(device, copy=True) if isinstance(value, Tensor) else value)


def pushed(history: Tensor, newest: Tensor) -> Tensor:
    """`history` without its oldest entry and with `newest` at the end."""
    return torch.cat([history[1:], newest.unsqueeze(0)])


def excess(history: Tensor, seen: int) -> Tensor | None:
    """How many standard errors the mean of the last entries is above that of those before; None without enough."""
    window = len(history)
    recent = min(RECENT, window // 2)
    if min(seen, window) < 2 * recent:
        return None
    late, early = history[-recent:], history[max(window - seen, 0) : -recent]
    spread = early.std(correction=0) * (1 / recent + 1 / len(early)) ** 0.5
    return (late.mean() - early.mean()) / (spread + 1e-6 * early.abs().mean() + TINY)


def quantile(probability: float) -> float:
    """The standard normal distribution's, infinite at 0 and 1."""
    return NormalDist().inv_cdf(probability) if 0 < probability < 1 else float("inf") * (2 * probability - 1)
