"""The measure `overhead`: what the monitor costs, in one run: off and on in turn, beside controls of known size.

off/off must come out as nothing and a delay of 2 % must be seen; only then does the figure for the monitor mean
anything, and otherwise the answer is "not resolved", never "none". What the monitor does at every step shows in the
pairs; what it does now and then (norms, the ledger, lines) would vanish in their median, so it is timed and added.
"""

import itertools
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TextIO

from optimeter.measure.memory.ledger import parameter_counts
from optimeter.measure.methods.arguments import AUTO, check_positive, check_sampling, check_whole
from optimeter.measure.methods.base import Measure, Trial
from optimeter.measure.methods.interleave import Comparison, interleave
from optimeter.measure.methods.loop import Loop
from optimeter.measure.monitor.monitor import OptimizerMonitor
from optimeter.measure.monitor.sampling import CALIBRATION_STEPS
from optimeter.measure.records import schema
from optimeter.measure.records.write import to_line
from optimeter.measure.statistics import median

OFF, ON, ONE, TWO = "off", "on", "+1 %", "+2 %"
AGAIN = f"{OFF} again"
PAIRS = [(OFF, AGAIN), (OFF, ON), (OFF, ONE), (OFF, TWO)]
SURE = 0.99  # confidence of off/off: at 0.9 one quiet machine in ten would be called restless
USUAL = 0.9  # confidence of the others
PRECISION = 0.005  # half-width of off/off and of off/on at which more pairs are not needed
MOST = 4  # times as many pairs as asked for, if they are needed
BATCHES = 8


class Overhead(Measure):
    """Time a training loop with the monitor off, on, and off with delays of known size as controls.

    sample_every: steps between two looks at norms and memory; "auto" keeps them under 0.4 % of the time.
    pairs: of blocks, for each comparison; up to four times as many while off/off or off/on is noisy.
    block_seconds: of steps in one block.
    """

    def __init__(self, sample_every: int | str = AUTO, pairs: int = 100, block_seconds: float = 0.06) -> None:
        check_sampling("sample_every", sample_every)
        check_whole("pairs", pairs, 4)
        check_positive("block_seconds", block_seconds)
        self.sample_every, self.pairs, self.block_seconds = sample_every, pairs, block_seconds

    def run(self, trial: Trial) -> schema.Findings:
        with open(os.devnull, "w") as sink:
            loop = MonitoredLoop(trial, self.sample_every, self.block_seconds, sink)
            comparisons = self._compare(loop, trial)
            monitor = loop.monitor
            return schema.Findings(
                status="ok",
                steps=monitor.steps,
                parameters=parameter_counts(loop.loop.model),
                memory=monitor.memory(),
                time=monitor.timing(),
                overhead=concluded(
                    schema.Overhead(
                        block_steps=loop.block_steps,
                        step_seconds=loop.step_seconds,
                        comparisons=comparisons,
                        sample_every=monitor.schedule.every,
                        sampling_share=loop.sampling_share(),
                        limit=trial.device.overhead_limit,
                    )
                ),
                missing={"quality": "measure=overhead does not train to an end"},
            )

    def line(self, findings: schema.Findings) -> str:
        """As in "the monitor costs at most 0.52% of the step time (0.31% to 0.52%, 90 % interval)"."""
        return findings.overhead.verdict or ""

    def _compare(self, loop: "MonitoredLoop", trial: Trial) -> dict[str, schema.OverheadComparison]:
        """Each comparison with the monitor off, by the name of the other side."""
        blocks = {
            OFF: loop.block(),
            AGAIN: loop.block(),
            ON: loop.block(monitored=True),
            ONE: loop.block(delay=0.01 * loop.step_seconds),
            TWO: loop.block(delay=0.02 * loop.step_seconds),
        }
        total = self.pairs * MOST

        def enough(comparisons: list[Comparison]) -> bool:
            trial.progress((len(comparisons[0].log_ratios), total, None))
            intervals = [comparison.interval() for comparison in comparisons[:2]]
            return all((high - low) / 2 <= PRECISION for _, low, high in intervals)

        null, on, one, two = interleave(blocks, PAIRS, self.pairs, enough, total, trial.settings.seed)
        usual = {ON: on, ONE: one, TWO: two}
        return {OFF: compared(null, SURE)} | {name: compared(each, USUAL) for name, each in usual.items()}


class MonitoredLoop:
    """A training loop whose blocks of steps can be timed with the monitor off, on, or with a known delay.

    sink: takes the monitor's lines; what they cost is the monitor's cost.
    """

    def __init__(self, trial: Trial, sample_every: int | str, block_seconds: float, sink: TextIO) -> None:
        self.device = trial.device
        self.loop = Loop(trial.workload, trial.optimizer, trial.settings, trial.device)
        batches = itertools.islice(trial.workload.batches("train", trial.settings.seed), BATCHES)
        self.batches = itertools.cycle([self.loop.placed(batch) for batch in batches])
        self.monitor = OptimizerMonitor(
            self.loop.model,
            self.loop.optimizer,
            sample_every=sample_every,
            device=trial.device,
            on_line=lambda line: sink.write(to_line(line)),
        )
        with self.monitor:
            self._run(CALIBRATION_STEPS + 8, self.monitor)
        self.step_seconds = median(self.monitor.timings.seconds["step"][CALIBRATION_STEPS:])
        self.block_steps = max(1, round(block_seconds / self.step_seconds))

    def _run(self, steps: int, monitor: OptimizerMonitor | None = None, delay: float = 0.0) -> None:
        for _ in range(steps):
            loss = self.loop.step([next(self.batches)])
            if monitor:
                monitor.record(loss)
            if delay:
                self.device.sleep(delay)

    def block(self, monitored: bool = False, delay: float = 0.0) -> Callable[[], float]:
        """A function that runs one block, after one step that does not count, and returns its seconds."""

        def run() -> float:
            monitor = self.monitor if monitored else None
            with self.monitor if monitored else nullcontext():
                self._run(1, monitor, delay)
                self.device.synchronise()
                begin = time.perf_counter()
                self._run(self.block_steps, monitor, delay)
                self.device.synchronise()
                return time.perf_counter() - begin

        return run

    def sampling_share(self) -> float:
        """Work that is not done at each step, spread over all: what sampling costs, and turning steps into lines."""
        sampling = median(self.monitor.timings.sampling) / self.monitor.schedule.every
        return (sampling + self.monitor.settling_seconds / self.monitor.steps) / self.step_seconds


def compared(comparison: Comparison, confidence: float) -> schema.OverheadComparison:
    """What the record keeps of one comparison."""
    difference, low, high = comparison.interval(confidence)
    return schema.OverheadComparison(
        a=comparison.a,
        b=comparison.b,
        difference=difference,
        low=low,
        high=high,
        confidence=confidence,
        pairs=len(comparison.log_ratios),
        log_ratios=list(comparison.log_ratios),
    )


def concluded(block: schema.Overhead) -> schema.Overhead:
    """The block with whether its controls came out as they must, and what that allows to be said of the monitor."""
    null, control, on = (interval_of(block.comparisons[name]) for name in (OFF, TWO, ON))
    quiet, seen = null[0] <= 0 <= null[1], control[0] > 0
    block.resolved = quiet and seen
    if not block.resolved:
        why = "a delay of 2 % was not seen" if quiet else "off/off is not 0"
        block.verdict = f"not resolved: {why}"
        return block
    share, limit = block.sampling_share or 0.0, block.limit or 0.0
    low, high = on[0] + share, on[1] + share
    block.low, block.high, block.under_limit = low, high, high < limit
    block.verdict = f"the monitor costs at most {high:.2%} of the step time ({low:.2%} to {high:.2%}, 90 % interval)"
    return block


def interval_of(comparison: schema.OverheadComparison) -> tuple[float, float]:
    """Lower and upper end of the relative difference."""
    assert comparison.low is not None
    assert comparison.high is not None
    return comparison.low, comparison.high
