"""The comparison of one setting: what each optimizer costs, how far it gets, how that differs from the baseline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from optimeter.measure.records.record import Record
from optimeter.reports.group import Group, Setting, at
from optimeter.reports.table import Cell, Table, number, percent

UNSTABLE, FEW = 0.05, 5  # of the median; timed steps below which a spread says nothing
CONFIDENCE = 0.95
MB = 1e6
COLUMNS = (
    *("optimizer", "status", "lr", "steps/s", "spread", "optimizer ms", "share of step"),
    *("state MB", "B/parameter", "in 8 bits", "peak MB", "peak in step MB"),
    *("final loss", "score", "steps to target", "loss vs baseline", "told apart"),
)


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


def paired(group: Group, baseline: Group) -> tuple[Difference | None, list[Record]]:
    """The difference of final losses over the seeds that both have finished, and the records it comes from."""
    base = {record.result["seed"]: record for record in baseline.ok}
    pairs = [(record, base[record.result["seed"]]) for record in group.ok if record.result["seed"] in base]
    losses = [(final_loss(a), final_loss(b), (a, b)) for a, b in pairs]
    known = [(a, b, records) for a, b, records in losses if a is not None and b is not None]
    used = [record for _, _, records in known for record in records]
    return difference([a for a, _, _ in known], [b for _, b, _ in known]), used


def final_loss(record: Record) -> float | None:
    """The held-out loss after the last step."""
    return at(record.result, "quality", "final_loss")


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


def comparison(setting: Setting, number_of: int) -> Table:
    """One row an optimizer; failed ones stay, with their status in place of figures. Columns without a value go."""
    rows = [row(group, setting) for group in setting.groups]
    filled = [index for index in range(len(COLUMNS)) if any(cells[index].shown not in ("–", "") for cells in rows)]
    return Table(
        f"comparison-{number_of}",
        f"Comparison: {setting.label}",
        [COLUMNS[index] for index in filled],
        [[cells[index] for index in filled] for cells in rows],
        list(_notes(setting)),
    )


def _notes(setting: Setting) -> list[str]:
    seeds = sorted({seed for record in setting.records if (seed := record.result["seed"]) is not None})
    first = setting.records[0].result
    machine = at(first, "environment", "gpu", "name") or at(first, "environment", "cpu", "model")
    notes = [
        f"Seeds {', '.join(map(str, seeds))}; medians over seeds. {machine}. Learning rates are those shown, not tuned "
        "for this workload. Speeds are of separate runs, so their ratio has no verdict; spread is (p90 − p10) / median "
        f"of a run's steps, and over {UNSTABLE:.0%} it is unstable."
    ]
    if setting.baseline:
        notes.append(
            f"Loss vs baseline: final held-out loss minus {setting.baseline.label}'s, paired by seed, with a "
            f"{CONFIDENCE:.0%} t interval; one seed, or a workload that the seed does not reach, has none."
        )
    else:
        notes.append(f"No paired differences: the baseline {setting.wanted} is not here once, finished and sound.")
    if first.get("device") == "cpu":
        notes.append(
            "Peak: of the tensors that live in one step after the run, since torch's CPU allocator keeps no count; "
            "where they could not be followed, of the whole process, imports included, and marked so."
        )
    return notes


def summary(setting: Setting) -> str:
    """Who takes the least time, holds the least state and gets the lowest loss, among those with every seed sound."""
    most = max(len(group.records) for group in setting.groups)
    groups = [group for group in setting.groups if group.sound and len(group.records) == most]
    if len(groups) < 2:
        return "Fewer than two optimizers finished every seed soundly: nothing to compare."
    left = len(setting.groups) - len(groups)
    parts = (
        _best(groups, "Shortest median step", ("time", "step", "median"), 1e3, " ms", _close_in_time),
        _best(groups, "Least state", ("memory", "state_bytes_per_parameter"), 1, " B/parameter", lambda a, b: False),
        _best(groups, "Lowest final loss", ("quality", "final_loss"), 1, "", _not_told_apart),
        f"Left out: {left} without {most} sound run{'s' if most > 1 else ''}." if left else "",
        "One seed each: differences in loss may be chance." if most == 1 else "",
    )
    return " ".join(filter(None, parts))


def _best(
    groups: Sequence[Group],
    words: str,
    path: Sequence[str],
    scale: float,
    unit: str,
    close: Callable[[Group, Group], bool],
) -> str:
    """The smallest, and how many others cannot be told from it."""
    ranked = sorted(
        ((value, group) for group in groups if (value := group.median(*path)) is not None), key=lambda pair: pair[0]
    )
    if not ranked:
        return ""
    least, best = ranked[0]
    near = [group.label for value, group in ranked[1:] if value == least or close(group, best)]
    names = ", ".join(near[:3]) + (f" and {len(near) - 3} more" if near[3:] else "")
    return f"{words}: {best.label}, {number(least * scale, 3, unit)}{f'; {names} as good' if near else ''}."


def _close_in_time(group: Group, best: Group) -> bool:
    """Whether two steps differ by less than separate runs do."""
    ours, least = (one.median("time", "step", "median") for one in (group, best))
    return ours is not None and least is not None and ours < least * (1 + UNSTABLE)


def _not_told_apart(group: Group, best: Group) -> bool:
    found, _ = paired(group, best)
    return found is not None and found.verdict() == "no"


def row(group: Group, setting: Setting) -> list[Cell]:
    """The cells of one optimizer, each with the records behind it."""
    ok = tuple(group.ok)

    def cell(text: str, value: float | None) -> Cell:
        return Cell(value, text, ok if value is not None else ())

    def figure(digits: int, value: float | None, scale: float = 1.0, mark: str = "") -> Cell:
        scaled = None if value is None else value * scale
        return cell(number(scaled, digits) + (mark if value is not None else ""), scaled)

    step, optimizer = group.median("time", "step", "median"), group.median("time", "optimizer", "median")
    peak, process = (group.median("memory", *path) for path in (("peak_bytes", "overall"), ("process_peak_bytes",)))
    score, target = group.median("quality", "score"), group.median("quality", "steps_to_target")
    reached = sum(at(record.result, "quality", "steps_to_target") is not None for record in ok)
    name = at(ok[0].result, "quality", "score_name") if ok else None
    lr: Any = at(group.records[0].result, "config", "optimizer", "lr")
    return [
        Cell(group.label, group.label, group.records),
        Cell(group.status(), group.status(), group.records),
        Cell(lr, "–" if lr is None else f"{lr:g}" if isinstance(lr, (int, float)) else str(lr), group.records),
        figure(3, 1 / step if step else None),
        cell(*_spread(group)),
        figure(3, optimizer, 1e3),
        cell(percent(share := optimizer / step if optimizer and step else None), share),
        figure(4, group.median("memory", "state_bytes"), 1 / MB),
        figure(4, group.median("memory", "state_bytes_per_parameter")),
        cell(percent(small := group.median("memory", "state_8bit_share")), small),
        figure(4, peak, 1 / MB) if peak is not None else figure(4, process, 1 / MB, " (process)"),
        figure(4, group.median("memory", "peak_bytes", "step"), 1 / MB),
        figure(4, group.median("quality", "final_loss")),
        cell("–" if score is None or name == "loss" else f"{name} {number(score, 4)}", score),
        cell("–" if target is None else f"{target:,.0f} ({reached}/{len(group.records)})", target),
        *_against(group, setting),
    ]


def _spread(group: Group) -> tuple[str, float | None]:
    """How far apart a run's steps are, or how few there are."""
    middle, count = group.median("time", "step", "median"), group.median("time", "step", "n")
    low, high = group.median("time", "step", "p10"), group.median("time", "step", "p90")
    if not middle or low is None or high is None or count is None:
        return "–", None
    if count < FEW:
        return f"n = {count:.0f}", None
    spread = (high - low) / middle
    return f"{percent(spread)}{' unstable' if spread > UNSTABLE else ''}", spread


def _against(group: Group, setting: Setting) -> tuple[Cell, Cell]:
    """The difference to the baseline, and whether it can be told from nothing."""
    if group is setting.baseline:
        return Cell(0.0, "baseline", tuple(group.ok)), Cell("")
    found, used = paired(group, setting.baseline) if setting.baseline else (None, [])
    if found is None:
        return Cell(None, "–"), Cell("")
    verdict = found.verdict()
    return Cell(found.mean, found.shown(), tuple(used)), Cell(verdict, verdict, tuple(used) if verdict else ())
