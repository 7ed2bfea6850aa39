"""The measure `train`: warm up, train, evaluate, stop. It knows nothing of files, configuration or processes."""

import math
import time
from collections import deque
from itertools import islice
from typing import Any

from optimeter.measure.memory.ledger import parameter_counts
from optimeter.measure.memory.peaks import peaks_of_a_step
from optimeter.measure.methods.arguments import AUTO, check_sampling
from optimeter.measure.methods.base import Measure, Trial
from optimeter.measure.methods.loop import Loop
from optimeter.measure.methods.quality import quality
from optimeter.measure.methods.settings import scheduler
from optimeter.measure.monitor.listener import ESTIMATOR
from optimeter.measure.monitor.monitor import OptimizerMonitor
from optimeter.measure.monitor.probe import fingerprints
from optimeter.measure.records.schema import Checks, Evaluation, Findings, Memory
from optimeter.measure.records.units import BYTES, SECONDS, scaled

DIVERGED_FACTOR, DIVERGED_LINES = 1e3, 10
PROGRESS_EVERY = 0.2  # seconds


class Train(Measure):
    """Train to the end under the monitor: what it costs, and how far the loss gets.

    sample_every: steps between two looks at norms and memory; "auto" keeps them under 0.4 % of the time.
    """

    def __init__(self, sample_every: int | str = AUTO) -> None:
        check_sampling("sample_every", sample_every)
        self.sample_every = sample_every

    def run(self, trial: Trial) -> Findings:
        return Training(trial, self.sample_every).run()

    def line(self, findings: Findings) -> str:
        """As in "loss 6.554 → 2.565, 46 ms a step, peak 36.2 MB in backward, 1.7 MB the optimizer's".

        The optimizer's: its state and the temporary memory of its step, the most that another one could save.
        """
        reached, memory, step = findings.quality, findings.memory, findings.time.step
        if findings.status != "ok" or reached.first_loss is None or reached.final_loss is None:
            return ""
        parts = [f"loss {reached.first_loss:.4g} → {reached.final_loss:.4g}"]
        if step:
            parts.append(f"{scaled(step.median, SECONDS)} a step")
        if memory.peak_bytes:
            by_phase = {name: size for name, size in memory.peak_bytes.items() if name != "overall"}
            phase = max(by_phase, key=by_phase.__getitem__)
            optimizer_bytes = (memory.state_bytes or 0) + (memory.transient_bytes or 0)
            parts.append(f"peak {scaled(memory.peak_bytes['overall'], BYTES)} in {phase}")
            parts.append(f"{scaled(optimizer_bytes, BYTES)} the optimizer's")
        return ", ".join(parts)


class Training:
    """One workload being trained by one optimizer; `run` trains and gives what was found."""

    def __init__(self, trial: Trial, sample_every: int | str = AUTO) -> None:
        self.trial, self.workload, self.settings = trial, trial.workload, trial.settings
        self.loop = Loop(trial.workload, trial.optimizer, trial.settings, trial.device)
        self.scheduler = scheduler(self.loop.optimizer, self.settings)
        self.monitor = OptimizerMonitor(
            self.loop.model,
            self.loop.optimizer,
            sample_every=sample_every,
            roles=trial.optimizer.roles,
            device=trial.device,
            on_line=self._on_line,
        )
        self.missing: dict[str, str] = {}
        self.evaluations: list[Evaluation] = []
        self.diverged: str | None = None
        self.last_losses: deque[float] = deque(maxlen=max(1, self.settings.steps // 10))
        self._high_losses = 0
        self._last_progress = 0.0

    def run(self) -> Findings:
        """Train and measure; `status` is "ok" or "diverged"."""
        with self.monitor.allocator.aside():
            before = fingerprints(self.loop.model)
        self.evaluate(0)
        batches = iter(self.workload.batches("train", self.settings.seed))
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
        if not checks.finite and not self.diverged:
            self.diverged = "a parameter is not finite after the last step"
        if not self.diverged and (not self.evaluations or self.evaluations[-1].step != self.monitor.steps):
            self.evaluate(self.monitor.steps)
        return self._findings(checks)

    def step(self, batches: list[Any]) -> None:
        """One optimizer step on the mean gradient of `batches`, after an estimate of curvature where one is due."""
        batches = list(map(self.loop.placed, batches))
        if self.loop.curvature_is_due():
            self._estimate(batches[0])
        loss = self.loop.step(batches)
        if self.scheduler:
            self.scheduler.step()
        self.monitor.record(loss, **self.workload.extra(self.loop.model))

    def _estimate(self, batch: Any) -> None:
        """An estimate of curvature, in a phase of its own: it is not part of the step."""
        self.loop.optimizer.zero_grad()  # outside: gradients that go are not counted against what the estimate leaves
        with self.monitor.phase(ESTIMATOR):
            finite = self.loop.estimate_curvature(batch)
        if not finite:
            self.diverged = f"the loss is not finite after step {self.monitor.steps}"

    def evaluate(self, step: int) -> None:
        """Held-out loss and score after `step` steps, in a phase of its own."""
        with self.monitor.phase("evaluation"):
            loss, score = self.loop.held_out()
        self.monitor.settle(wait=True)
        if score is None and math.isfinite(loss):
            score = loss
        self.evaluations.append(Evaluation(step=step, seconds=self.monitor.elapsed, loss=loss, score=score))
        if not math.isfinite(loss) and not self.diverged:
            self.diverged = f"the held-out loss is not finite after step {step}"

    def _evaluates_after(self, step: int) -> bool:
        every = self.settings.eval_every
        return step == self.settings.steps or (every is not None and step % every == 0)

    def _on_line(self, line: dict[str, Any]) -> None:
        """Watch for divergence, keep what the summary needs, and pass on every n-th line, the ends and the sampled."""
        if self.diverged:  # found some steps late
            return
        self.last_losses.append(line["loss"])
        self.diverged = self._divergence(line)
        end = line["step"] in (1, self.settings.steps) or self.diverged
        if end or "gradient" in line or line["step"] % self.settings.record_every == 0:
            self.trial.write(line)

    def _divergence(self, line: dict[str, Any]) -> str | None:
        """Why a step shows that the run has diverged, or None."""
        loss, step = line["loss"], line["step"]
        limit = DIVERGED_FACTOR * max(1.0, abs(self.evaluations[0].loss))  # type: ignore[arg-type] # there is a first
        self._high_losses = self._high_losses + 1 if loss > limit else 0
        if not math.isfinite(loss):
            return f"the loss is not finite at step {step}"
        if not math.isfinite(line.get("weight_norm", 0.0)) and not self.loop.is_finite():
            return f"a parameter is not finite after step {step}"
        if self._high_losses == DIVERGED_LINES:
            return f"the loss stayed above {limit:g} for {DIVERGED_LINES} steps, to step {step}"
        return None

    def _report(self, step: int) -> None:
        now = time.monotonic()
        if now - self._last_progress > PROGRESS_EVERY:
            self._last_progress = now
            self.monitor.settle()
            loss = self.last_losses[-1] if self.last_losses else None
            self.trial.progress((step, self.settings.steps, loss))

    def _checks(self, before: dict[str, int]) -> Checks:
        """What must be true of an honest run: everything trainable moved, nothing frozen did, all is finite."""
        trainable = {name for name, _ in self.loop.named}
        unmoved = self.loop.unmoved(before)
        state_bytes = self.monitor.sampler.state_bytes
        return Checks(
            parameters_moved=not unmoved & trainable,
            unmoved=sorted(unmoved & trainable),
            frozen_unchanged=set(before) - trainable <= unmoved,
            finite=self.loop.is_finite(),
            state_grew=len(state_bytes) > 2 and state_bytes[-1] > state_bytes[1],
        )

    def _findings(self, checks: Checks) -> Findings:
        memory = self.monitor.memory()
        time = self.monitor.timing()
        self._complete(memory)
        self.missing |= self.monitor.missing()
        return Findings(
            status="diverged" if self.diverged else "ok",
            reason=self.diverged,
            steps=self.monitor.steps,
            parameters=parameter_counts(self.loop.model),
            memory=memory,
            time=time,
            quality=quality(self.workload, self.evaluations, self.last_losses, bool(self.diverged)),
            checks=checks,
            missing=self.missing,
        )

    def _complete(self, memory: Memory) -> None:
        """Add what only the run knows: what building allocated, the prediction, peaks where no allocator counts."""
        if memory.allocator_state_bytes is None:
            self.missing["memory.allocator_state_bytes"] = str(self.monitor.allocator.reason)
            self._follow_a_step(memory)
        else:
            memory.allocator_state_bytes += self.loop.built_bytes or 0
            # What the allocator counted in the first steps, beside what lay on the device after them: some of it may
            # be given up later, and what lies on the host, as the step of torch's own Adam does, was never counted.
            walked = self.monitor.walked_bytes.get(self.trial.device.torch.type, 0)
            memory.unexplained_bytes = memory.allocator_state_bytes - walked
        memory.predicted_state_bytes, reason = self.loop.predicted_state_bytes()
        if reason:
            self.missing["memory.predicted_state_bytes"] = reason

    def _follow_a_step(self, memory: Memory) -> None:
        """Peaks from the tensors of one more step."""
        batches = islice(self.workload.batches("train", self.settings.seed), self.settings.accumulate)
        peaks, reason = peaks_of_a_step(self.loop, list(map(self.loop.placed, batches)))
        if peaks:
            memory.peak_bytes, memory.peak_source = peaks.by_phase, "tensors"
            memory.transient_bytes = peaks.transient_bytes
        else:
            names = ("peak_bytes", "peak_source", "transient_bytes")
            self.missing |= {f"memory.{name}": str(reason) for name in names}
