"""The comparison of one setting: what each optimizer costs, how far it gets, how that differs from the baseline."""

from dataclasses import dataclass

from measure.record import Record
from reports.group import Group, Setting, at
from reports.table import Cell, Table, number, percent

UNSTABLE, FEW = 0.05, 5  # of the median; timed steps below which a spread says nothing
CONFIDENCE = 0.95
MB = 1e6
COLUMNS = (
    *("optimizer", "status", "steps/s", "spread", "optimizer ms", "share of step"),
    *("state MB", "B/parameter", "in 8 bits", "peak MB"),
    *("final loss", "score", "steps to target", "loss vs baseline", "told apart"),
)


@dataclass(frozen=True)
class Difference:
    """Final losses paired by seed, b − a: the mean and its interval (None with one seed)."""

    mean: float
    low: float | None
    high: float | None
    identical: bool  # to the last bit, for every seed

    def shown(self) -> str:
        """The difference with its interval, or with the reason for having none."""
        if self.identical:
            return "identical"
        if self.low is None or self.high is None:
            return f"{self.mean:+.3g}"
        return f"{self.mean:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"

    def verdict(self) -> str:
        """Which one gets lower, if the interval excludes 0."""
        if self.identical:
            return "no"
        if self.low is None or self.high is None:
            return ""
        return "lower" if self.high < 0 else "higher" if self.low > 0 else "no"


def paired(group: Group, baseline: Group) -> tuple[Difference | None, list[Record]]:
    """The difference of final losses over the seeds that both have finished, and the records it comes from."""
    from scipy.stats import t

    base = {record.result["seed"]: record for record in baseline.ok}
    pairs = [(record, base[record.result["seed"]]) for record in group.ok if record.result["seed"] in base]
    values = [at(a.result, "quality", "final_loss") - at(b.result, "quality", "final_loss") for a, b in pairs]
    used = [record for pair in pairs for record in pair]
    if not values:
        return None, []
    mean, n = sum(values) / len(values), len(values)
    if n == 1:
        return Difference(mean, None, None, not any(values)), used
    error = (sum((value - mean) ** 2 for value in values) / (n - 1) / n) ** 0.5
    half = error * float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Difference(mean, mean - half, mean + half, not any(values)), used


def comparison(setting: Setting, number_of: int) -> Table:
    """One row an optimizer; failed ones stay, with their status in place of figures."""
    seeds = sorted({record.result["seed"] for record in setting.records})
    machine = at(setting.records[0].result, "environment", "gpu", "name") or at(
        setting.records[0].result, "environment", "cpu", "model"
    )
    notes = [
        f"Seeds {', '.join(map(str, seeds))}; medians over seeds. {machine}. Speeds are of separate runs, so their "
        "ratio has no verdict; spread is (p90 − p10) / median of a run's steps, and over 5 % it is unstable.",
        f"Loss vs baseline: final held-out loss minus {setting.baseline.label}'s, paired by seed, with a "
        f"{CONFIDENCE:.0%} t interval; one seed has none."
        if setting.baseline
        else "The baseline has no finished run here.",
    ]
    if setting.records[0].result["device"] == "cpu":
        notes.append("Peak: the whole process, imports included; torch's CPU allocator keeps no count.")
    rows = [row(group, setting) for group in setting.groups]
    return Table(f"comparison-{number_of}", f"Comparison: {setting.label}", COLUMNS, rows, notes)


def summary(setting: Setting) -> str:
    """Who takes the least time, holds the least state and gets the lowest loss, in a sentence."""
    parts = []
    for words, path, scale, unit in (
        ("shortest step", ("time", "step", "median"), 1e3, " ms"),
        ("least state", ("memory", "state_bytes_per_parameter"), 1, " B/parameter"),
        ("lowest final loss", ("quality", "final_loss"), 1, ""),
    ):
        values = {group.label: value for group in setting.groups if (value := group.median(*path)) is not None}
        if values:
            best = min(values, key=lambda label: values[label])
            parts.append(f"{words}: {best}, {number(values[best] * scale, 3, unit)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if parts else "No run came to its end."


def row(group: Group, setting: Setting) -> list[Cell]:
    """The cells of one optimizer, each with the records behind it."""
    ok = tuple(group.ok)

    def cell(text: str, value: float | None) -> Cell:
        return Cell(value, text, ok if value is not None else ())

    def figure(digits: int, value: float | None, scale: float = 1.0) -> Cell:
        scaled = None if value is None else value * scale
        return cell(number(scaled, digits), scaled)

    step, optimizer = group.median("time", "step", "median"), group.median("time", "optimizer", "median")
    peak = group.median("memory", "peak_bytes", "overall") or group.median("memory", "process_peak_bytes")
    score, target = group.median("quality", "score"), group.median("quality", "steps_to_target")
    reached = sum(at(record.result, "quality", "steps_to_target") is not None for record in ok)
    name = at(ok[0].result, "quality", "score_name") if ok else None
    return [
        Cell(group.label, group.label, group.records),
        Cell(group.status(), group.status(), group.records),
        figure(3, 1 / step if step else None),
        cell(*_spread(group)),
        figure(3, optimizer, 1e3),
        cell(percent(share := optimizer / step if optimizer and step else None), share),
        figure(4, group.median("memory", "state_bytes"), 1 / MB),
        figure(4, group.median("memory", "state_bytes_per_parameter")),
        cell(percent(small := group.median("memory", "state_8bit_share")), small),
        figure(4, peak, 1 / MB),
        figure(4, group.median("quality", "final_loss")),
        cell("–" if score is None or name == "loss" else f"{name} {number(score, 4)}", score),
        cell("–" if target is None else f"{target:,.0f} ({reached}/{len(ok)})", target),
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
    if group is setting.baseline or setting.baseline is None:
        return Cell(None, "baseline" if setting.baseline else "–"), Cell("")
    difference, used = paired(group, setting.baseline)
    if difference is None:
        return Cell(None, "–"), Cell("")
    verdict = difference.verdict()
    return Cell(difference.mean, difference.shown(), tuple(used)), Cell(
        verdict, verdict, tuple(used) if verdict else ()
    )
