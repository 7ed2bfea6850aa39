"""The measure `step`: the optimizer's step alone, against a baseline's, both in one process, in pairs of random order.

Each side has its own copy of the parameters. Before a block they are set back, every gradient is written anew, and one
step is made that does not count; a block is steps of one side, as many as fill `block_seconds`. On CUDA a block's
seconds are between events on the stream, the larger of what the host and what the device needs; the host's own time
stands beside.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from optimeter.measure.memory.ledger import parameter_counts
from optimeter.measure.methods.arguments import check_positive, check_share
from optimeter.measure.methods.bandwidth import copy_rates
from optimeter.measure.methods.base import Measure, News, Trial, ignore, unsuitable
from optimeter.measure.methods.contestant import Contestant
from optimeter.measure.methods.gradients import gradients_for
from optimeter.measure.methods.interleave import Comparison, interleave
from optimeter.measure.methods.loop import Loop
from optimeter.measure.records.schema import Checks, Findings, StepComparison, StepSide
from optimeter.measure.statistics import median, spread

CANDIDATE, BASELINE = "candidate", "baseline"
ROUND, MOST = 4, 10_000  # pairs between two looks, and at all
LEAST, BELIEVED = 8, 12  # pairs, however long they take; before a narrow interval is believed
CONFIDENCE = 0.99  # at 0.9 a noisy machine would call one pair of equals in fifteen FAST or SLOW
NOT_MEASURED = "measure=step makes no training step"
HOST_WAITS = "On a CPU the step has ended when step() returns: host and device time are the same."
ORDINARY = "estimates curvature every some steps; these are its ordinary steps alone."
CACHED = "works on no more than the cache holds: its share of the copy can pass 1."
UNEVEN = 1.1  # mean over median of the seconds a step, from which the median does not tell the whole cost
LONGEST_SHAPES = 60  # characters of shapes in the line that ends a run


class Step(Measure):
    """Time the optimizer's step against the baseline's on a workload's parameters, and say FAST, SLOW, SAME or AMBG.

    seconds: for all pairs together; less where the interval is narrow before, more where 8 pairs take it.
    precision: half-width of the ratio's interval at which more pairs are not needed.
    delta: how far from 1 a ratio must be to be FAST or SLOW; within it all is SAME.
    block_seconds: of steps in one block.
    """

    optimizers = (BASELINE,)
    trains = False

    def __init__(
        self, seconds: float = 10, precision: float = 0.01, delta: float = 0.05, block_seconds: float = 0.02
    ) -> None:
        check_positive("block_seconds", block_seconds)
        check_positive("seconds", seconds)
        check_positive("precision", precision)
        check_share("delta", delta)
        self.seconds, self.precision, self.delta, self.block_seconds = seconds, precision, delta, block_seconds

    def fits(self, trial: Trial) -> str | None:
        if reason := super().fits(trial):
            return reason
        baseline = trial.others[BASELINE]
        reason = unsuitable(trial.workload, baseline)
        return f"baseline={baseline.name}: {reason}; choose another baseline" if reason else None

    def run(self, trial: Trial) -> Findings:
        candidate, baseline = self._contestants(trial)
        rates = copy_rates(trial.device)
        for contestant in (candidate, baseline):
            contestant.start(self.block_seconds)
        blocks = {CANDIDATE: candidate.block, BASELINE: baseline.block}
        seed = trial.settings.seed
        comparison = make_pairs(blocks, self.seconds, self.precision, seed, trial.progress)
        rates += copy_rates(trial.device)  # before and after: a neighbour may have come or gone
        unmoved = candidate.unmoved()
        checks = Checks(parameters_moved=not unmoved, unmoved=unmoved, finite=candidate.loop.is_finite())
        checks.baseline_sound = baseline.loop.is_finite() and not baseline.unmoved()
        findings = Findings(
            status="ok",
            steps=candidate.steps,
            parameters=parameter_counts(candidate.loop.model),
            memory=candidate.memory(),
            time=candidate.times(),
            step=self._compared(candidate, baseline, comparison, rates),
            checks=checks,
            missing=dict.fromkeys(("quality", "time.step", "memory.allocator_state_bytes"), NOT_MEASURED),
        )
        findings.memory.predicted_state_bytes, reason = candidate.loop.predicted_state_bytes()
        if reason:
            findings.missing["memory.predicted_state_bytes"] = reason
        return findings

    def line(self, findings: Findings) -> str:
        """As in "adamw8bit against bnb_adamw8bit on 8*1024x1024: FAST 0.46 [0.38, 0.47]"."""
        step = findings.step
        if step.verdict is None:
            return ""
        shapes = step.shapes or ""
        if len(shapes) > LONGEST_SHAPES:
            shapes = f"{shapes[:LONGEST_SHAPES].rpartition('+')[0]}+…"
        ratio = f"{step.ratio:.2f} [{step.low:.2f}, {step.high:.2f}]"
        return f"{step.candidate.optimizer} against {step.baseline.optimizer} on {shapes}: {step.verdict} {ratio}"

    def _contestants(self, trial: Trial) -> tuple[Contestant, Contestant]:
        """Candidate and baseline, alike in their weights, with one source of gradients."""
        workload, settings, device = trial.workload, trial.settings, trial.device
        candidate = Loop(workload, trial.optimizer, settings, device)
        baseline = Loop(workload, trial.others[BASELINE], settings, device, like=candidate.model)
        gradients = gradients_for(candidate)
        values = [p.detach().clone() for p in candidate.parameters]
        return Contestant(candidate, gradients, values), Contestant(baseline, gradients, values)

    def _compared(
        self, candidate: Contestant, baseline: Contestant, comparison: Comparison, rates: Sequence[float]
    ) -> StepComparison:
        cache, copied = candidate.device.cache_bytes(), median(rates)
        sides = {CANDIDATE: candidate.side(copied, cache), BASELINE: baseline.side(copied, cache)}
        ratio, low, high = (1 + value for value in comparison.interval(CONFIDENCE))
        return StepComparison(
            verdict=verdict(low, high, self.delta),
            ratio=ratio,
            low=low,
            high=high,
            confidence=CONFIDENCE,
            delta=self.delta,
            pairs=len(comparison.log_ratios),
            log_ratios=list(comparison.log_ratios),
            shapes=shapes_of(candidate.parameters),
            gradients=candidate.loop.workload.gradients,
            copy_bytes_per_second=spread(rates),
            cache_bytes=cache,
            notes=notes((candidate, baseline), list(sides.values())),
            candidate=sides[CANDIDATE],
            baseline=sides[BASELINE],
        )


def verdict(low: float, high: float, delta: float) -> str:
    """FAST, SLOW or SAME where the whole interval of the ratio says so, else AMBG."""
    if high < 1 - delta:
        return "FAST"
    if low > 1 + delta:
        return "SLOW"
    return "SAME" if 1 - delta <= low and high <= 1 + delta else "AMBG"


def make_pairs(
    blocks: Mapping[str, Callable[[], float]],
    seconds: float,
    precision: float,
    seed: int,
    progress: Callable[[News], object] = ignore,
    now: Callable[[], float] = time.monotonic,
) -> Comparison:
    """Candidate against baseline, in pairs, until the interval is narrow or the time is spent.

    At least 8 pairs are made, whatever the time: of fewer, an interval of the median is too narrow.
    """
    begin = now()

    def enough(comparisons: list[Comparison]) -> bool:
        made, spent = len(comparisons[0].log_ratios), now() - begin
        progress((made, max(made, round(made * seconds / spent)) if spent > 0 else made, None))
        _, low, high = comparisons[0].interval(CONFIDENCE)
        return made >= LEAST and (spent >= seconds or (made >= BELIEVED and (high - low) / 2 <= precision))

    return interleave(blocks, [(BASELINE, CANDIDATE)], ROUND, enough, MOST, seed)[0]


def notes(contestants: Sequence[Contestant], sides: Sequence[StepSide]) -> dict[str, str]:
    """What must be said beside the figures, by topic."""
    ordinary = [f"{each.recipe.name} {ORDINARY}" for each in contestants if each.recipe.hessian_every]
    by_topic = {
        "clock": [HOST_WAITS] if contestants[0].device.host_waits else [],
        "curvature": ordinary,
        "cache": [f"{side.optimizer} {CACHED}" for side in sides if side.fits_in_cache],
        "uneven": [note for note in map(unevenness, sides) if note],
    }
    return {topic: " ".join(dict.fromkeys(sentences)) for topic, sentences in by_topic.items() if sentences}


def unevenness(side: StepSide) -> str:
    """What must be said of a mean step that is far above the median one; "" where it is not."""
    if side.mean_seconds is None or side.seconds is None:
        return ""
    over = side.mean_seconds / side.seconds.median
    if over <= UNEVEN:
        return ""
    return (
        f"{side.optimizer}: the mean step is {over:.2f} times the median one, from noise or from work that it "
        "does now and then; ratio and verdict are of the median."
    )


def shapes_of(parameters: Sequence[Tensor]) -> str:
    """Shapes as `measure.shapes` takes them, equal ones counted together: 256*8x1024+4096."""
    counts = Counter("x".join(map(str, p.shape)) or "1" for p in parameters)
    return "+".join(f"{count}*{shape}" if count > 1 else shape for shape, count in counts.items())
