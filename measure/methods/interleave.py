"""Two things timed in one process, in pairs of blocks in random order: the only way to a claim of one per cent.

Sequential measurements differ by more than that when nothing has changed; here a slow minute hits both sides.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from optimeter.measure.statistics import bootstrap

Pair = tuple[str, str]


@dataclass(frozen=True)
class Comparison:
    """How much longer `b` takes than `a`: the log ratio of each pair of blocks, raw."""

    a: str
    b: str
    log_ratios: Sequence[float]

    def interval(self, confidence: float = 0.9) -> tuple[float, float, float]:
        """(median, low, high) of the relative difference b/a − 1, by bootstrap over the pairs."""
        median, low, high = (math.expm1(value) for value in bootstrap(self.log_ratios, confidence=confidence))
        return median, low, high


def interleave(
    blocks: Mapping[str, Callable[[], float]],
    pairs: Sequence[Pair],
    rounds: int,
    enough: Callable[[list[Comparison]], bool] = lambda comparisons: True,
    most_rounds: int | None = None,
    seed: int = 0,
) -> list[Comparison]:
    """Time each pair `rounds` times, all pairs shuffled together, A before B by the toss of a coin.

    `blocks` maps a name to a function that runs one block and returns its seconds. After each `rounds`, more follow
    until `enough` says so or `most_rounds` are made.
    """
    draw = random.Random(seed)
    ratios: dict[Pair, list[float]] = {pair: [] for pair in pairs}
    made = 0
    while True:
        for _ in range(rounds):
            for pair in draw.sample(list(pairs), len(pairs)):
                order = pair if draw.random() < 0.5 else pair[::-1]
                seconds = [blocks[name]() for name in order]
                a, b = seconds if order == pair else seconds[::-1]
                ratios[pair].append(math.log(b / a))
        made += rounds
        comparisons = [Comparison(a, b, ratios[a, b]) for a, b in pairs]
        if enough(comparisons) or made >= (most_rounds or rounds):
            return comparisons
