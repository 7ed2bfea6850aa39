"""The comparison of one setting: what each optimizer costs, how far it gets, how that differs from the baseline."""

from collections.abc import Callable, Sequence
from functools import partial

from optimeter.measure.records.read import Record
from optimeter.measure.records.schema import Result
from optimeter.reports.group import Group, Setting
from optimeter.reports.look import MB, MS, configured, machine_of, middle, on_cpu, peak
from optimeter.reports.paired import CONFIDENCE, paired_difference
from optimeter.reports.table import DASH, Cell, Table, number, percent, scaled

UNSTABLE, FEW = 0.05, 5  # of the median; timed steps below which a spread says nothing
COLUMNS = (
    *("optimizer", "status", "lr", "steps/s", "spread", "optimizer ms", "share of step"),
    *("state MB", "B/parameter", "in 8 bits", "peak MB", "peak in step MB"),
    *("final loss", "score", "steps to target", "loss vs baseline", "told apart"),
)


def comparison(setting: Setting, number_of: int) -> Table:
    """One row an optimizer; failed ones stay, with their status in place of figures. Columns without a value go."""
    rows = [row(group, setting) for group in setting.groups]
    filled = [index for index in range(len(COLUMNS)) if any(cells[index].shown not in (DASH, "") for cells in rows)]
    return Table(
        f"comparison-{number_of}",
        f"Comparison: {setting.label}",
        [COLUMNS[index] for index in filled],
        [[cells[index] for index in filled] for cells in rows],
        list(_notes(setting)),
    )


def _notes(setting: Setting) -> list[str]:
    seeds = sorted({seed for record in setting.records if (seed := record.result.seed) is not None})
    first = setting.records[0].result
    notes = [
        f"Seeds {', '.join(map(str, seeds))}; medians over seeds. {machine_of(first)}. Learning rates are those shown, "
        "not tuned for this workload. Speeds are of separate runs, so their ratio has no verdict; spread is "
        f"(p90 − p10) / median of a run's steps, and over {UNSTABLE:.0%} it is unstable."
    ]
    if setting.baseline:
        notes.append(
            f"Loss vs baseline: final held-out loss minus {setting.baseline.label}'s, paired by seed, with a "
            f"{CONFIDENCE:.0%} t interval; one seed, or a workload that the seed does not reach, has none."
        )
    else:
        notes.append(
            f"No paired differences: the baseline {setting.baseline_name} is not here once, finished and sound."
        )
    if on_cpu(first):
        notes.append(
            "Peak: of the tensors that live in one step after the run, since torch's CPU allocator keeps no count; "
            "where they could not be followed, of the whole process, imports included, and marked so."
        )
    return notes


def step_seconds(run: Result) -> float | None:
    """Median step."""
    return middle(run.time.step)


def summary(setting: Setting) -> str:
    """Who takes the least time, holds the least state and gets the lowest loss, among those with every seed sound."""
    most = max(len(group.records) for group in setting.groups)
    groups = [group for group in setting.groups if group.sound and len(group.records) == most]
    if len(groups) < 2:
        return "Fewer than two optimizers finished every seed soundly: nothing to compare."
    sentences = [
        _best(groups, "Shortest median step", step_seconds, " ms", _close_in_time, MS),
        _best(groups, "Least state", lambda run: run.memory.state_bytes_per_parameter, " B/parameter"),
        _best(groups, "Lowest final loss", lambda run: run.quality.final_loss, "", _not_told_apart),
    ]
    left = len(setting.groups) - len(groups)
    if left:
        sentences.append(f"Left out: {left} without {most} sound run{'s' if most > 1 else ''}.")
    if most == 1:
        sentences.append("One seed each: differences in loss may be chance.")
    return " ".join(filter(None, sentences))


def _best(
    groups: Sequence[Group],
    title: str,
    quantity: Callable[[Result], float | None],
    unit: str,
    close: Callable[[Group, Group], bool] = lambda group, best: False,
    factor: float = 1.0,
) -> str:
    """The smallest, and how many others cannot be told from it."""
    measured = [(value, group) for group in groups if (value := group.median(quantity)) is not None]
    if not measured:
        return ""
    measured.sort(key=lambda pair: pair[0])
    least, best = measured[0]
    near = [group.label for value, group in measured[1:] if value == least or close(group, best)]
    names = ", ".join(near[:3]) + (f" and {len(near) - 3} more" if near[3:] else "")
    return f"{title}: {best.label}, {number(least * factor, 3, unit)}{f'; {names} as good' if near else ''}."


def _close_in_time(group: Group, best: Group) -> bool:
    """Whether two steps differ by less than separate runs do."""
    step, least = group.median(step_seconds), best.median(step_seconds)
    return step is not None and least is not None and step < least * (1 + UNSTABLE)


def _not_told_apart(group: Group, best: Group) -> bool:
    between, _ = paired_difference(group, best)
    return between is not None and between.verdict() == "no"


def row(group: Group, setting: Setting) -> list[Cell]:
    """The cells of one optimizer, each with the records behind it."""
    runs, median = tuple(group.ok), group.median
    figure = partial(scaled, records=runs)
    step, optimizer = median(step_seconds), median(lambda run: middle(run.time.optimizer))
    share_in_8_bits = median(lambda run: run.memory.state_8bit_share)
    share_of_step = optimizer / step if optimizer and step else None
    return [
        Cell(group.label, group.label, group.records),
        Cell(group.status(), group.status(), group.records),
        _learning_rate(group),
        figure(1 / step if step else None, digits=3),
        _spread(group),
        figure(optimizer, MS, 3),
        shown(share_of_step, percent(share_of_step), runs),
        figure(median(lambda run: run.memory.state_bytes), 1 / MB),
        figure(median(lambda run: run.memory.state_bytes_per_parameter)),
        shown(share_in_8_bits, percent(share_in_8_bits), runs),
        _peak(group),
        figure(median(lambda run: peak(run, "step")), 1 / MB),
        figure(median(lambda run: run.quality.final_loss)),
        _score(group),
        _steps_to_target(group),
        *_against(group, setting),
    ]


def shown(value: float | None, text: str, records: tuple[Record, ...]) -> Cell:
    """A value as `text`; a dash that leads nowhere where there is none."""
    return Cell(None, DASH) if value is None else Cell(value, text, records)


def _learning_rate(group: Group) -> Cell:
    rate = configured(group.records[0].result, "optimizer", "lr")
    text = f"{rate:g}" if isinstance(rate, (int, float)) else str(rate)
    return Cell(rate, DASH if rate is None else text, group.records)


def _peak(group: Group) -> Cell:
    """Of tensors or the allocator; where neither counted, of the whole process, and marked so."""
    counted = group.median(peak)
    if counted is not None:
        return scaled(counted, 1 / MB, records=tuple(group.ok))
    whole = group.median(lambda run: run.memory.process_peak_bytes)
    return scaled(whole, 1 / MB, records=tuple(group.ok), mark=" (process)")


def _score(group: Group) -> Cell:
    """The score, where it is another thing than the loss."""
    score = group.median(lambda run: run.quality.score)
    name = group.ok[0].result.quality.score_name if group.ok else None
    text = DASH if name == "loss" else f"{name} {number(score, 4)}"
    return shown(score, text, tuple(group.ok))


def _steps_to_target(group: Group) -> Cell:
    steps = group.median(lambda run: run.quality.steps_to_target)
    reached = sum(record.result.quality.steps_to_target is not None for record in group.ok)
    return shown(steps, f"{steps or 0:,.0f} ({reached}/{len(group.records)})", tuple(group.ok))


def _spread(group: Group) -> Cell:
    """How far apart a run's steps are, or how few there are."""
    middle_of, count = group.median(step_seconds), group.median(lambda run: run.time.step.n if run.time.step else None)
    low = group.median(lambda run: run.time.step.p10 if run.time.step else None)
    high = group.median(lambda run: run.time.step.p90 if run.time.step else None)
    if not middle_of or low is None or high is None or count is None:
        return Cell(None, DASH)
    if count < FEW:
        return Cell(None, f"n = {count:.0f}")
    spread = (high - low) / middle_of
    return Cell(spread, f"{percent(spread)}{' unstable' if spread > UNSTABLE else ''}", tuple(group.ok))


def _against(group: Group, setting: Setting) -> tuple[Cell, Cell]:
    """The difference to the baseline, and whether it can be told from nothing."""
    if group is setting.baseline:
        return Cell(0.0, "baseline", tuple(group.ok)), Cell("")
    between, used = paired_difference(group, setting.baseline) if setting.baseline else (None, [])
    if between is None:
        return Cell(None, DASH), Cell("")
    verdict = between.verdict()
    return Cell(between.mean, between.shown(), tuple(used)), Cell(verdict, verdict, tuple(used) if verdict else ())
