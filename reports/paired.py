"""Differences of final losses, paired by seed."""

from collections.abc import Sequence
from dataclasses import dataclass

from optimeter.measure.records.read import Record
from optimeter.reports.group import Group

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Final losses paired by seed, b − a: the mean and its interval (None where the seeds say nothing of spread)."""

    mean: float
    low: float | None = None
    high: float | None = None
    note: str = ""

    def shown(self) -> str:
        """The difference with its interval, or with the reason for having none."""
        if self.low is None or self.high is None:
            return " ".join(filter(None, (f"{self.mean:+.3g}" if self.mean else "", self.note)))
        return f"{self.mean:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"

    def verdict(self) -> str:
        """Which one gets lower, if the interval excludes 0; nothing where there is none."""
        if self.low is None or self.high is None:
            return "no" if self.mean == 0 else ""
        return "lower" if self.high < 0 else "higher" if self.low > 0 else "no"


def paired_difference(group: Group, baseline: Group) -> tuple[Difference | None, list[Record]]:
    """The difference of final losses over the seeds that both have finished, and the records it comes from."""
    by_seed = {record.result.seed: record for record in baseline.ok}
    ours, theirs, used = [], [], []
    for record in group.ok:
        other = by_seed.get(record.result.seed)
        if other is None:
            continue
        loss, base = record.result.quality.final_loss, other.result.quality.final_loss
        if loss is not None and base is not None:
            ours.append(loss)
            theirs.append(base)
            used += [record, other]
    return difference(ours, theirs), used


def difference(ours: Sequence[float], base: Sequence[float]) -> Difference | None:
    """Of two samples paired by seed, with a t interval; None without a pair."""
    values, n = [a - b for a, b in zip(ours, base, strict=True)], len(ours)
    if not n:
        return None
    mean = sum(values) / n
    if not any(values):
        return Difference(0.0, note="identical")
    if n > 1 and len(set(ours)) == len(set(base)) == 1:  # the seed reaches nothing here: these are not n samples
        return Difference(mean, note="for every seed")
    return Difference(mean, *(interval(values) or (None, None)))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The t interval of the mean; None for fewer than two values."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    error = (sum((value - mean) ** 2 for value in values) / (n - 1) / n) ** 0.5
    half = error * float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return mean - half, mean + half
