"""The training loop: warm up, train, evaluate, stop. It knows nothing of files, configuration or processes."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from measure.allocator import allocator_for
from measure.monitor import ESTIMATOR, OptimizerMonitor
from measure.predict import predict, to_mode
from measure.probe import fingerprint

DIVERGED_FACTOR, DIVERGED_LINES = 1e3, 10
PROGRESS_EVERY = 0.2  # seconds
WEYL = 0x9E3779B97F4A7C15  # 2⁶⁴ / golden ratio: seeds of consecutive steps share no pattern in their bits
Build = Callable[[Sequence[tuple[str, Tensor]]], Optimizer]


@dataclass(frozen=True)
class Settings:
    """How to train, whatever is trained; the names are the configuration's."""

    steps: int
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    schedule: str = "constant"
    warmup_steps: int = 0
    clip_norm: float | None = None
    accumulate: int = 1
    eval_every: int | None = None
    record_every: int = 1
    sample_every: int | str = "auto"
    closure: bool = False
    hessian_every: int | None = None  # steps between two curvature estimates, the first before step 1
    roles: Mapping[str, str] = field(default_factory=dict)


class Training:
    """One workload trained by one optimizer; `run` gives the record's blocks.

    `write` receives the lines of steps.jsonl, `progress` (step, steps, loss) a few times a second.
    """

    def __init__(
        self,
        workload: Any,
        build: Build,
        settings: Settings,
        write: Callable[[dict[str, Any]], object] = lambda line: None,
        progress: Callable[[tuple[int, int, float | None]], None] = lambda news: None,
    ) -> None:
        self.workload, self.settings, self.write, self.progress = workload, settings, write, progress
        self.device = torch.device(settings.device)
        torch.manual_seed(settings.seed)
        self.model: nn.Module = workload.model().to(device=self.device, dtype=settings.dtype)
        self.named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.missing: dict[str, str] = {}
        held = allocator_for(self.device).held()
        self.build, self.optimizer = build, build(self.named)
        self.built_bytes = None if held is None else (allocator_for(self.device).held() or 0) - held
        torch.manual_seed(settings.seed + 1)  # whatever the optimizer drew, the model's own draws start alike
        self.scheduler = scheduler(self.optimizer, settings)
        self.monitor = OptimizerMonitor(
            self.model,
            self.optimizer,
            sample_every=settings.sample_every,
            roles=settings.roles,
            on_line=self._on_line,
        )
        self.evaluations: list[dict[str, Any]] = []
        self.diverged: str | None = None
        self.last_losses: deque[float] = deque(maxlen=max(1, settings.steps // 10))
        self._high_losses = 0
        self._last_progress = 0.0

    def _predict(self) -> int | None:
        """State bytes by fake tensors, after the run; where an optimizer cannot be run on them, None and the reason."""
        try:
            sparse, closure = self.workload.gradients == "sparse", self.settings.closure
            return predict(self.build, self.named, sparse, closure).ledger.state_bytes
        except Exception as error:
            reason = f"fake tensors: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self.missing["memory.predicted_state_bytes"] = reason
            return None

    def run(self) -> dict[str, Any]:
        """Train and measure; `status` is "ok" or "diverged"."""
        with self.monitor.allocator.aside():
            before = fingerprints(self.model)
        self.evaluate(0)
        batches = iter(self.workload.batches("train", self.settings.seed))
        to_mode(self.optimizer, "train")
        with self.monitor:
            for step in range(1, self.settings.steps + 1):
                self.step([next(batches) for _ in range(self.settings.accumulate)])
                if self._evaluates_after(step):
                    self.evaluate(step)
                if self.diverged:
                    break
                self._report(step)
        with self.monitor.allocator.aside():
            checks = self._checks(before)
        if not checks["finite"] and not self.diverged:
            self.diverged = "a parameter is not finite after the last step"
        if not self.diverged and (not self.evaluations or self.evaluations[-1]["step"] != self.monitor.steps):
            self.evaluate(self.monitor.steps)
        return self._blocks(checks)

    def step(self, batches: list[Any]) -> None:
        """One optimizer step on the mean gradient of `batches`."""
        batches = [to_device(batch, self.device, self.settings.dtype) for batch in batches]
        losses: list[Tensor] = []
        if self.settings.hessian_every and self.monitor.steps % self.settings.hessian_every == 0:
            self.estimate_curvature(batches[0])

        def closure() -> Tensor:
            losses.append(self._fill_gradients(batches))
            return losses[-1]

        if self.settings.closure:
            self.optimizer.step(closure)  # type: ignore[arg-type]
        else:
            closure()
            self.optimizer.step()
        if self.scheduler:
            self.scheduler.step()
        self.monitor.record(losses[0], **self.workload.extra(self.model))

    def estimate_curvature(self, batch: Any) -> None:
        """Hand the optimizer the loss that it estimates curvature from, on a step's first batch; not part of the step.

        What the model draws, as in dropout, is taken back, so that the run sees the same draws as without estimates.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        self.optimizer.zero_grad()  # the last step's are done with; an estimate need not be made beside them
        with self.monitor.phase(ESTIMATOR), torch.random.fork_rng(devices):
            self.optimizer.update_hessian(*self._curvature_loss(batch))  # type: ignore[attr-defined]

    def _curvature_loss(self, batch: Any) -> tuple[Tensor, int]:
        """The loss that the optimizer wants, and the number of labels that it is the mean over."""
        if self.optimizer.curvature_from == "loss":  # type: ignore[attr-defined]
            return self.workload.loss(self.model, batch), 1
        seed = (self.settings.seed + WEYL * (self.monitor.steps + 1)) % (1 << 63)
        generator = torch.Generator(self.device).manual_seed(seed)
        return self.workload.sampled_loss(self.model, batch, generator)

    def _fill_gradients(self, batches: list[Any]) -> Tensor:
        """Backward through each batch, clip; returns the mean loss."""
        self.optimizer.zero_grad()
        losses = []
        for batch in batches:
            loss = self.workload.loss(self.model, batch) / len(batches)
            loss.backward()
            losses.append(loss.detach())
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        return torch.stack(losses).sum()

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Held-out loss and score after `step` steps, in a phase of its own."""
        to_mode(self.optimizer, "eval")
        self.model.eval()
        with self.monitor.phase("evaluation"):
            batches = self.workload.batches("held_out", self.settings.seed)
            on_device = (to_device(batch, self.device, self.settings.dtype) for batch in batches)
            loss = torch.stack([self.workload.loss(self.model, batch) for batch in on_device]).double().mean().item()
            score = self.workload.score(self.model) if math.isfinite(loss) else None
        self.model.train()
        to_mode(self.optimizer, "train")
        self.monitor.settle(wait=True)
        seconds = self.monitor.elapsed
        score = loss if score is None and math.isfinite(loss) else score
        self.evaluations.append({"step": step, "seconds": seconds, "loss": loss, "score": score})
        if not math.isfinite(loss) and not self.diverged:
            self.diverged = f"the held-out loss is not finite after step {step}"

    def _evaluates_after(self, step: int) -> bool:
        every = self.settings.eval_every
        return step == self.settings.steps or (every is not None and step % every == 0)

    def _on_line(self, line: dict[str, Any]) -> None:
        """Watch for divergence, keep what the summary needs, and pass on every n-th line, the ends and the sampled."""
        if self.diverged:  # found some steps late
            return
        loss, index = line["loss"], line["step"]
        self.last_losses.append(loss)
        limit = DIVERGED_FACTOR * max(1.0, abs(self.evaluations[0]["loss"]))
        self._high_losses = self._high_losses + 1 if loss > limit else 0
        weight_norm = line.get("weight_norm", 0.0)
        if not math.isfinite(loss):
            self.diverged = f"the loss is not finite at step {index}"
        elif not math.isfinite(weight_norm) and not self._is_finite():
            self.diverged = f"a parameter is not finite after step {index}"
        elif self._high_losses == DIVERGED_LINES:
            self.diverged = f"the loss stayed above {limit:g} for {DIVERGED_LINES} steps, to step {index}"
        end = index in (1, self.settings.steps) or self.diverged
        if end or "gradient" in line or index % self.settings.record_every == 0:
            self.write(line)

    def _report(self, step: int) -> None:
        now = time.monotonic()
        if now - self._last_progress > PROGRESS_EVERY:
            self._last_progress = now
            self.monitor.settle()
            loss = self.last_losses[-1] if self.last_losses else None
            self.progress((step, self.settings.steps, loss))

    def _checks(self, before: dict[str, int]) -> dict[str, Any]:
        """What must be true of an honest run: everything trainable moved, nothing frozen did, all is finite."""
        after, trainable = fingerprints(self.model), {n for n, p in self.model.named_parameters() if p.requires_grad}
        same = {name for name in after if after[name] == before[name]}
        grown = self.monitor.sampler.state_bytes
        return {
            "parameters_moved": not same & trainable,
            "unmoved": sorted(same & trainable),
            "frozen_unchanged": set(after) - trainable <= same,
            "finite": self._is_finite(),
            "state_grew": len(grown) > 2 and grown[-1] > grown[1],
        }

    def _is_finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self.model.parameters())

    def _blocks(self, checks: dict[str, Any]) -> dict[str, Any]:
        blocks = self.monitor.summary()
        memory = blocks["memory"]
        memory["predicted_state_bytes"] = self._predict()
        if memory["allocator_state_bytes"] is None:
            self.missing["memory.allocator_state_bytes"] = self.missing["memory.peak_bytes"] = str(
                self.monitor.allocator.reason
            )
        else:
            memory["allocator_state_bytes"] += self.built_bytes or 0
            memory["unexplained_bytes"] = memory["allocator_state_bytes"] - memory["state_bytes"]
        self.missing |= self.monitor.missing()
        status = "diverged" if self.diverged else "ok"
        quality, steps = self._quality(), self.monitor.steps
        return (
            blocks
            | {"status": status, "reason": self.diverged, "steps": steps}
            | {
                "quality": quality,
                "checks": checks,
                "missing": self.missing,
            }
        )

    def _quality(self) -> dict[str, Any]:
        """Held-out loss and score, and when the target was first reached."""
        losses = [one["loss"] for one in self.evaluations if math.isfinite(one["loss"])]
        target, sign = self.workload.target, 1 if self.workload.higher_is_better else -1
        reached = [
            one
            for one in self.evaluations
            if target is not None and one["score"] is not None and sign * (one["score"] - target) >= 0
        ]
        last = self.evaluations[-1] if not self.diverged else {"loss": None, "score": None}
        return {
            "first_loss": self.evaluations[0]["loss"],
            "final_loss": last["loss"],
            "best_loss": min(losses, default=None),
            "train_loss": sum(self.last_losses) / len(self.last_losses) if self.last_losses else None,
            "score": last["score"],
            "score_name": self.workload.score_name,
            "higher_is_better": self.workload.higher_is_better,
            "target": target,
            "steps_to_target": reached[0]["step"] if reached else None,
            "seconds_to_target": reached[0]["seconds"] if reached else None,
            "evaluations": self.evaluations,
        }


def scheduler(optimizer: Optimizer, settings: Settings) -> LambdaLR | None:
    """Linear warm-up, then constant, or linear or cosine decay to 0 at the last step; None where nothing changes."""
    warmup, rest = settings.warmup_steps, max(settings.steps - settings.warmup_steps, 1)
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda progress: 1.0,
        "linear": lambda progress: 1 - progress,
        "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    }
    shape = shapes[settings.schedule]
    if settings.schedule == "constant" and warmup == 0:
        return None
    return LambdaLR(optimizer, lambda done: (done + 1) / warmup if done < warmup else shape((done - warmup) / rest))


def to_device(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Tensors of a batch on `device`, floating ones in `dtype`; containers keep their shape."""
    if isinstance(batch, Tensor):
        return batch.to(device, dtype if batch.is_floating_point() else None, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(part, device, dtype) for key, part in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(part, device, dtype) for part in batch)
    return batch


def fingerprints(model: nn.Module) -> dict[str, int]:
    """A hash of the bits of each parameter, by name, to tell exactly which have moved."""
    return {name: fingerprint(p) for name, p in model.named_parameters() if p.numel()}
