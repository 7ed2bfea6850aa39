"""The training loop: warm up, train, evaluate, stop. It knows nothing of files, configuration or processes."""

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from optimeter.measure.devices import device_for
from optimeter.measure.memory.peaks import watched
from optimeter.measure.memory.prediction import predict, to_mode
from optimeter.measure.methods.quality import quality
from optimeter.measure.methods.settings import Build, Settings, scheduler, to_device
from optimeter.measure.monitor.listener import ESTIMATOR
from optimeter.measure.monitor.monitor import OptimizerMonitor
from optimeter.measure.monitor.probe import fingerprints
from optimeter.measure.records.record import in_short

DIVERGED_FACTOR, DIVERGED_LINES = 1e3, 10
PROGRESS_EVERY = 0.2  # seconds
WEYL = 0x9E3779B97F4A7C15  # 2⁶⁴ / golden ratio: seeds of consecutive steps share no pattern in their bits


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
        self.device = device_for(settings.device)
        torch.manual_seed(settings.seed)
        self.model: nn.Module = workload.model().to(device=self.device.torch, dtype=settings.dtype)
        self.named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.missing: dict[str, str] = {}
        held = self.device.allocator().held()
        self.build, self.optimizer = build, build(self.named)
        self.built_bytes = None if held is None else (self.device.allocator().held() or 0) - held
        torch.manual_seed(settings.seed + 1)  # whatever the optimizer drew, the model's own draws start alike
        self.scheduler = scheduler(self.optimizer, settings)
        self.monitor = OptimizerMonitor(
            self.model,
            self.optimizer,
            sample_every=settings.sample_every,
            roles=settings.roles,
            on_line=self._on_line,
            device=self.device,
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
            self.missing["memory.predicted_state_bytes"] = f"fake tensors: {in_short(error)}"
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
        batches = list(map(self._on_device, batches))
        losses: list[Tensor] = []
        if self.settings.hessian_every and self.monitor.steps % self.settings.hessian_every == 0:
            self.estimate_curvature(batches[0])

        def closure() -> Tensor:
            losses.append(self.fill_gradients(batches))
            return losses[-1]

        if self.settings.closure:
            self.optimizer.step(closure)  # type: ignore[arg-type]
        else:
            self.update(closure())
        if self.scheduler:
            self.scheduler.step()
        self.monitor.record(losses[0], **self.workload.extra(self.model))

    def update(self, loss: Tensor) -> None:
        """The optimizer's step; where it wants to know the loss it is told."""
        if getattr(self.optimizer, "wants_loss", False):
            self.optimizer.report_loss(loss)  # type: ignore[attr-defined]
        self.optimizer.step()

    def estimate_curvature(self, batch: Any) -> None:
        """Hand the optimizer the loss that it estimates curvature from, on a step's first batch; not part of the step.

        What the model draws, as in dropout, is taken back, so that the run sees the same draws as without estimates.
        """
        self.optimizer.zero_grad()  # the last step's are done with; an estimate need not be made beside them
        twice = self.optimizer.curvature_from == "loss"  # type: ignore[attr-defined]
        # Of torch's forms of attention one alone can be differentiated twice.
        attention = sdpa_kernel(SDPBackend.MATH) if twice else nullcontext()
        try:
            with self.monitor.phase(ESTIMATOR), torch.random.fork_rng(self.device.fork_devices()), attention:
                self.optimizer.update_hessian(*self._curvature_loss(batch))  # type: ignore[attr-defined]
        except RuntimeError:  # as where no label can be drawn, since nothing is finite any more
            with torch.no_grad():
                if self.workload.loss(self.model, batch).isfinite():
                    raise
            self.diverged = f"the loss is not finite after step {self.monitor.steps}"

    def _curvature_loss(self, batch: Any) -> tuple[Tensor, int]:
        """The loss that the optimizer wants, and the number of labels that it is the mean over."""
        if self.optimizer.curvature_from == "loss":  # type: ignore[attr-defined]
            return self.workload.loss(self.model, batch), 1
        seed = (self.settings.seed + WEYL * (self.monitor.steps + 1)) % (1 << 63)
        generator = torch.Generator(self.device.torch).manual_seed(seed)
        return self.workload.sampled_loss(self.model, batch, generator)

    def fill_gradients(self, batches: list[Any], phase: Callable[[str], Any] = nullcontext) -> Tensor:
        """Backward through each batch, clip; returns the mean loss."""
        self.optimizer.zero_grad()
        losses = []
        for batch in batches:
            with phase("forward"):
                loss = self.workload.loss(self.model, batch) / len(batches)
            with phase("backward"):
                loss.backward()
            losses.append(loss.detach())
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        return torch.stack(losses).sum()

    def evaluate(self, step: int) -> None:
        """Held-out loss and score after `step` steps, in a phase of its own."""
        with self.monitor.phase("evaluation"):
            loss, score = self.held_out()
        self.monitor.settle(wait=True)
        seconds = self.monitor.elapsed
        score = loss if score is None and math.isfinite(loss) else score
        self.evaluations.append({"step": step, "seconds": seconds, "loss": loss, "score": score})
        if not math.isfinite(loss) and not self.diverged:
            self.diverged = f"the held-out loss is not finite after step {step}"

    @torch.no_grad()
    def held_out(self) -> tuple[float, float | None]:
        """Loss and score on the held-out data, with model and optimizer in their modes for it."""
        to_mode(self.optimizer, "eval")
        self.model.eval()
        batches = map(self._on_device, self.workload.batches("held_out", self.settings.seed))
        loss = torch.stack([self.workload.loss(self.model, batch) for batch in batches]).double().mean().item()
        score = self.workload.score(self.model) if math.isfinite(loss) else None
        self.model.train()
        to_mode(self.optimizer, "train")
        return loss, score

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

    def _on_device(self, batch: Any) -> Any:
        return to_device(batch, self.device.torch, self.settings.dtype)

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
        if memory["allocator_state_bytes"] is None:
            self.missing["memory.allocator_state_bytes"] = str(self.monitor.allocator.reason)
            batches = islice(self.workload.batches("train", self.settings.seed), self.settings.accumulate)
            found, reason = watched(self, list(map(self._on_device, batches)))
            memory |= found
            names = ("peak_bytes", "peak_source", "transient_bytes") if reason else ()
            self.missing |= {f"memory.{name}": reason for name in names}
        else:
            memory["allocator_state_bytes"] += self.built_bytes or 0
            # What the allocator counted in the first steps, beside what lay on the device after them: some of it may
            # be given up later, and what lies on the host, as the step of torch's own Adam does, was never counted.
            walked = self.monitor.walked_bytes.get(self.device.torch.type, 0)
            memory["unexplained_bytes"] = memory["allocator_state_bytes"] - walked
        memory["predicted_state_bytes"] = self._predict()
        self.missing |= self.monitor.missing()
        status = "diverged" if self.diverged else "ok"
        found = quality(self.workload, self.evaluations, self.last_losses, bool(self.diverged))
        return (
            blocks
            | {"status": status, "reason": self.diverged, "steps": self.monitor.steps}
            | {"quality": found, "checks": checks, "missing": self.missing}
        )
