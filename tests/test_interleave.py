"""Interleaved comparison and the proof of the monitor's cost, on clocks whose noise the test makes."""

import math
import random
from typing import Any

import pytest

from optimeter.measure.methods.interleave import Comparison, interleave
from optimeter.measure.methods.overhead import OFF, ON, ONE, TWO, Overhead, concluded
from optimeter.measure.records import schema
from optimeter.measure.records.schema import Spread
from optimeter.measure.statistics import bootstrap, spread
from optimeter.workloads import MLP
from tests.trials import trial


def noisy(seconds: float, draw: random.Random, drift: list[float]) -> float:
    """A block on a machine that slows down steadily and stutters now and then."""
    drift[0] *= 1.003
    return seconds * drift[0] * math.exp(draw.gauss(0, 0.01)) * (3 if draw.random() < 0.02 else 1)


def test_a_two_per_cent_difference_is_found_under_drift_and_noise() -> None:
    draw, drift = random.Random(1), [1.0]
    blocks = {name: (lambda s=s: noisy(s, draw, drift)) for name, s in (("a", 1.0), ("b", 1.02), ("same", 1.0))}
    same, two = interleave(blocks, [("a", "same"), ("a", "b")], 80)
    _, low, high = same.interval()
    assert low <= 0 <= high
    middle, low, high = two.interval()
    assert low > 0
    assert middle == pytest.approx(0.02, abs=0.006)


def test_pairs_are_balanced_and_more_are_made_until_it_is_enough() -> None:
    calls: list[str] = []
    blocks = {name: (lambda name=name: calls.append(name) or 1.0) for name in "ab"}
    asked: list[int] = []

    def enough(comparisons: list[Comparison]) -> bool:
        asked.append(len(comparisons[0].log_ratios))
        return False

    (comparison,) = interleave(blocks, [("a", "b")], 10, enough, most_rounds=30)
    assert asked == [10, 20, 30]
    assert calls.count("a") == calls.count("b") == 30
    assert {"".join(pair) for pair in zip(calls[::2], calls[1::2], strict=True)} == {"ab", "ba"}
    assert comparison.interval() == (0, 0, 0)


def part(low: float, high: float) -> schema.OverheadComparison:
    return schema.OverheadComparison(a=OFF, b="it", low=low, high=high, difference=(low + high) / 2)


@pytest.mark.parametrize(
    ("null", "control", "on", "resolved", "words"),
    [
        ((-0.002, 0.002), (0.015, 0.025), (0.001, 0.006), True, "at most 1.00%"),
        ((-0.002, 0.002), (0.015, 0.025), (0.001, 0.060), True, "at most 6.40%"),
        ((0.001, 0.002), (0.015, 0.025), (0.001, 0.006), False, "not resolved: off/off"),
        ((-0.002, 0.002), (-0.001, 0.025), (0.001, 0.006), False, "not resolved: a delay"),
    ],
)
def test_the_verdict_needs_its_controls(null: Any, control: Any, on: Any, resolved: bool, words: str) -> None:
    parts = {OFF: part(*null), ON: part(*on), ONE: part(0, 0.02), TWO: part(*control)}
    found = concluded(schema.Overhead(comparisons=parts, sampling_share=0.004, limit=0.02))
    assert found.resolved is resolved
    assert words in str(found.verdict)
    if resolved:
        assert found.under_limit is (on[1] + 0.004 < 0.02)


def test_overhead_of_a_real_loop_has_every_part() -> None:
    import torch

    measure = Overhead(sample_every=5, pairs=4, block_seconds=0.002)
    findings = measure.run(trial(MLP(steps=1), lambda named: torch.optim.SGD([p for _, p in named])))
    found = findings.overhead
    assert set(found.comparisons) == {OFF, ON, ONE, TWO}
    assert all(4 <= comparison.pairs <= 16 for comparison in found.comparisons.values())
    assert found.sampling_share > 0
    assert measure.line(findings) == found.verdict
    assert found.verdict.startswith(("the monitor costs at most", "not resolved"))


def test_spread_and_bootstrap() -> None:
    assert spread([]) is None
    assert spread([3.0]) == Spread(median=3.0, p10=3.0, p90=3.0, n=1)
    assert spread(list(range(11))) == Spread(median=5.0, p10=1.0, p90=9.0, n=11)
    draw = random.Random(0)
    covered = 0
    for seed in range(60):
        _, low, high = bootstrap([draw.gauss(0, 1) for _ in range(25)], seed=seed)
        covered += low <= 0 <= high
    assert 45 <= covered <= 60, "a 90 % interval covers the truth about nine times in ten"
    with pytest.raises(ValueError, match="two values"):
        bootstrap([1.0])
