"""A model and its optimizer, and what a training loop does with them: every measure that makes steps uses this one."""

import copy
import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from optimeter.measure.memory.prediction import predict, to_mode
from optimeter.measure.methods.base import Recipe
from optimeter.measure.methods.settings import Settings, to_device
from optimeter.measure.monitor.probe import fingerprints
from optimeter.measure.records.write import in_short
from optimeter.workloads.core.workload import Workload

if TYPE_CHECKING:
    from optimeter.measure.devices import Device

WEYL = 0x9E3779B97F4A7C15  # 2⁶⁴ / golden ratio: seeds of consecutive steps share no pattern in their bits


class Loop:
    """One workload's model under one optimizer, built in the same order for all: the same seed gives the same weights.

    model: in the settings' dtype, on the device; a copy of `like` where that is given.
    named: (name, parameter) of what is trained.
    steps: how many updates were made.
    built_bytes: what the optimizer allocated when it was built; None where the allocator keeps no count.
    """

    def __init__(
        self,
        workload: Workload,
        recipe: Recipe,
        settings: Settings,
        device: "Device",
        like: nn.Module | None = None,
    ) -> None:
        self.workload, self.recipe, self.settings, self.device = workload, recipe, settings, device
        torch.manual_seed(settings.seed)
        model = workload.model() if like is None else copy.deepcopy(like)
        self.model: nn.Module = model.to(device=device.torch, dtype=settings.dtype)
        self.named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        allocator = device.allocator()
        before = allocator.held()
        self.optimizer = recipe.build(self.named)
        self.built_bytes = None if before is None else (allocator.held() or 0) - before
        to_mode(self.optimizer, "train")
        torch.manual_seed(settings.seed + 1)  # whatever the optimizer drew, the model's own draws start alike
        self.steps = 0

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [p for _, p in self.named]

    def placed(self, batch: Any) -> Any:
        """A batch on the device, its floating tensors in the settings' dtype."""
        return to_device(batch, self.device.torch, self.settings.dtype)

    def step(self, batches: list[Any]) -> Tensor:
        """One optimizer step on the mean gradient of `batches`, which are placed; returns the mean loss before it."""
        losses: list[Tensor] = []

        def closure() -> Tensor:
            losses.append(self.gradients(batches))
            return losses[-1]

        if self.recipe.closure:
            self.optimizer.step(closure)  # type: ignore[arg-type]
            self.steps += 1
        else:
            self.update(closure())
        return losses[0]

    def gradients(self, batches: list[Any]) -> Tensor:
        """Fill the gradients, clipped, with their mean over `batches`, which are placed; returns the mean loss."""
        self.optimizer.zero_grad()
        losses = []
        for batch in batches:
            loss = self.forward(batch, len(batches))
            loss.backward()
            losses.append(loss.detach())
        self.clip()
        return torch.stack(losses).sum()

    def forward(self, batch: Any, parts: int = 1) -> Tensor:
        """The loss of one batch, as a share of the mean over `parts` of them, with its graph."""
        return self.workload.loss(self.model, batch) / parts

    def clip(self) -> None:
        """Scale the gradients down to the settings' norm, where there is one."""
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)

    def update(self, loss: Tensor) -> None:
        """The optimizer's step; an optimizer that wants to know the loss is told it."""
        if getattr(self.optimizer, "wants_loss", False):
            self.optimizer.report_loss(loss)  # type: ignore[attr-defined]
        self.optimizer.step()
        self.steps += 1

    def curvature_is_due(self) -> bool:
        """Whether the optimizer wants an estimate before the next step."""
        every = self.recipe.hessian_every
        return bool(every) and self.steps % every == 0  # type: ignore[operator]

    def estimate_curvature(self, batch: Any) -> bool:
        """Hand the optimizer the loss that it estimates curvature from; False where the loss is not finite.

        What the model draws, as in dropout, is taken back: the run sees the same draws as without estimates. Raises
        what the optimizer's own code raises on a finite loss.
        """
        self.optimizer.zero_grad()  # the last step's are done with; an estimate need not be made beside them
        twice = self.optimizer.curvature_from == "loss"  # type: ignore[attr-defined]
        # Of torch's forms of attention one alone can be differentiated twice.
        attention = sdpa_kernel(SDPBackend.MATH) if twice else nullcontext()
        try:
            with torch.random.fork_rng(self.device.fork_devices()), attention:
                self.optimizer.update_hessian(*self._curvature_loss(batch))  # type: ignore[attr-defined]
        except RuntimeError:  # as where no label can be drawn, since nothing is finite any more
            with torch.no_grad():
                finite = bool(self.workload.loss(self.model, batch).isfinite())
            if finite:
                raise
            return False
        return True

    def _curvature_loss(self, batch: Any) -> tuple[Tensor, int]:
        """The loss that the optimizer wants, and the number of labels that it is the mean over."""
        if self.optimizer.curvature_from == "loss":  # type: ignore[attr-defined]
            return self.workload.loss(self.model, batch), 1
        seed = (self.settings.seed + WEYL * (self.steps + 1)) % (1 << 63)
        generator = torch.Generator(self.device.torch).manual_seed(seed)
        return self.workload.sampled_loss(self.model, batch, generator)

    @torch.no_grad()
    def held_out(self) -> tuple[float, float | None]:
        """Loss and score on the held-out data, with model and optimizer in their modes for it."""
        to_mode(self.optimizer, "eval")
        self.model.eval()
        batches = map(self.placed, self.workload.batches("held_out", self.settings.seed))
        loss = torch.stack([self.workload.loss(self.model, batch) for batch in batches]).double().mean().item()
        score = self.workload.score(self.model) if math.isfinite(loss) else None
        self.model.train()
        to_mode(self.optimizer, "train")
        return loss, score

    def is_finite(self) -> bool:
        """Whether every parameter is finite; waits for the device."""
        return all(bool(p.isfinite().all()) for p in self.model.parameters())

    def unmoved(self, before: dict[str, int]) -> set[str]:
        """Names of the parameters, frozen ones too, that are bit for bit as when `before` was taken of the model."""
        now = fingerprints(self.model)
        return {name for name in now if now[name] == before[name]}

    def predicted_state_bytes(self) -> tuple[int | None, str | None]:
        """State bytes by stepping the optimizer on fake tensors; or None, and why that cannot be done.

        To be asked after the optimizer's own steps: a library may keep what it computes under fake tensors.
        """
        try:
            sparse = self.workload.gradients == "sparse"
            prediction = predict(self.recipe.build, self.named, sparse, self.recipe.closure)
        except Exception as error:
            return None, f"fake tensors: {in_short(error)}"
        return prediction.ledger.state_bytes, None
