"""The tables of fine-tuning: Adafactor and Adam on T5 (document 002), optimizers on a diffusion model's LoRA (004)."""

from collections.abc import Sequence

from optimeter.measure.records.read import Record
from optimeter.reports.comparison import step_seconds
from optimeter.reports.documents.evidence import (
    BOTH,
    OUTDONE,
    UNREACHED,
    Figure,
    best,
    candidates,
    seed_by_seed,
)
from optimeter.reports.documents.quantities import UNSTEADINESS
from optimeter.reports.group import Group, Setting, settings_of
from optimeter.reports.look import MB, MS, class_of, configured, middle, peak
from optimeter.reports.table import DASH, Cell, Table, number, percent, scaled, texts

ADAMS, ADAFACTORS = ("Adam", "AdamW"), ("Adafactor",)
# What document 002 prints for a T5 of no named size, and document 004 for Stable Diffusion 1.5.
PRINTED_T5 = dict.fromkeys(ADAMS[:1], "2.1 s a step, 32 GB") | {"Adafactor": "1.7 s a step, 18 GB"}
PRINTED_LORA = {
    "AdamW": "0.185, 45 min, 18 GB",
    "AdamW8bit": "0.187, 47 min, 12 GB",
    "CustomAdamW": "0.171, 48 min, 13 GB",
}
PRINTED_SUMMARY = {
    "AdamW": "memory −45 %, speed +15 %, performance +3–5 %, stability +20 %",
    "AdamW8bit": "memory −8 %, speed +15 %, performance +3–5 %, stability +20 %",
}
REFERENCES = {"AdamW": ("adamw", "torch_adamw"), "AdamW8bit": ("adamw8bit", "bnb_adamw8bit")}
PROCESS = "process"  # where neither an allocator counts nor tensors could be followed, the whole process
PHASES = ("forward", "backward", "step", "evaluation", "estimator")
COSTS = ("state MB", "in 8 bits", "peak MB", "peak in", "optimizer at most MB")
SEPARATE = "Separate runs: times have no verdict."
PEAKS = (
    "Peak in: the phase that sets the peak; on a CPU, where no allocator counts, from the tensors that live in one "
    "step after the run (where they cannot be followed, the whole process, imports included), without work that an "
    "optimizer does only every few steps. Optimizer at most: its state and the temporary memory of its step, which is "
    "all that another optimizer can save."
)


def adafactor_vs_adam(records: Sequence[Record]) -> Table | None:
    """Time a step, memory, steps and final loss of both on T5."""
    rows = []
    for setting in settings_of(records):
        groups = [group for group in setting.groups if class_of(group.records[0]) in (*ADAMS, *ADAFACTORS)]
        classes = {class_of(group.records[0]) for group in groups}
        if setting.conditions["workload_name"] == "t5" and classes & {*ADAMS} and classes & {*ADAFACTORS}:
            rows += [_t5_row(group, setting) for group in groups]
    columns = ("optimizer", "on", "lr", "status", "step ms", "optimizer ms", "steps", "steps to target", "final loss")
    notes = [
        f"{SEPARATE} {PEAKS} Document 002 names neither size nor hardware for what it prints. For T5-11B it prints too "
        "1M and 800K steps, perplexity 3.21 and 3.15, peaks of 64 and 38 GB, 21 and 16 days: parameters, gradients and "
        "state alone need more (memory_plan).",
    ]
    title = "adafactor_vs_adam: Adafactor and Adam on T5 (document 002)"
    return Table("adafactor_vs_adam", title, (*columns, *COSTS, "printed"), rows, notes) if rows else None


def _t5_row(group: Group, setting: Setting) -> list[Cell]:
    steps = group.median(lambda run: run.quality.steps_to_target)
    return [
        *_names(group, setting),
        _time(group),
        _cell(group, group.median(lambda run: middle(run.time.optimizer)), MS),
        Cell(setting.conditions.get("steps")),
        Cell(steps, DASH if steps is None else f"{steps:,.0f}", tuple(group.ok)),
        _loss(group),
        *_costs(group),
        _printed(PRINTED_T5, group),
    ]


def lora_comparison(records: Sequence[Record]) -> Table | None:
    """Final loss, training time and peak of every optimizer on a diffusion model's LoRA."""
    rows = [
        [
            *_names(group, setting),
            _loss(group),
            _training(group),
            *_costs(group),
            _printed(PRINTED_LORA, group),
        ]
        for setting in _loras(records)
        for group in setting.groups
    ]
    notes = [
        f"Training s: the sum of its steps, without evaluations. {SEPARATE} Small tensors stay in 32 bits, and in a "
        f"small model that may be all. {PEAKS}"
    ]
    columns = ("optimizer", "on", "lr", "status", "final loss", "training s", *COSTS, "printed")
    title = "lora_comparison: LoRA on a diffusion model (document 004)"
    return Table("lora_comparison", title, columns, rows, notes) if rows else None


def lora_summary(records: Sequence[Record]) -> Table | None:
    """The same relative to AdamW and to AdamW8bit, seed by seed."""
    rows = []
    for setting in _loras(records):
        for against, names in REFERENCES.items():
            found = next(filter(None, (candidates(setting, {"optimizer": name}) for name in names)), None)
            if found:
                reference = best(found)
                others = [group for group in setting.groups if group.label != reference.label and group.ok]
                rows += [_summary_row(group, reference, against, setting) for group in others]
    columns = ("optimizer", "on", "against", "state", "peak", "training time", "steps to target", "final loss")
    notes = [
        "Change relative to the reference (where it has several learning rates, its best), mean over seeds with a 95 % "
        "interval, to which steps to a target add what lies between two evaluations; minus "
        "is less. Unsteadiness: the median jump of the training loss between recorded steps of the "
        f"second half, over its median; document 004 does not say what its stability is. {SEPARATE}",
    ]
    title = "lora_summary: relative to AdamW and AdamW8bit (document 004)"
    return Table("lora_summary", title, (*columns, UNSTEADINESS, "printed"), rows, notes) if rows else None


def _summary_row(group: Group, reference: Group, against: str, setting: Setting) -> list[Cell]:
    counted = _peak(group)[1] != PROCESS
    peaks = "memory.peak_bytes.overall" if counted else "memory.process_peak_bytes"
    own = class_of(group.records[0]) == "CustomAdamW"
    return [
        *texts(group.label, setting.label, records=group.records),
        Cell(f"{against}: {reference.label}", "", reference.records),
        *(_change(group, reference, field) for field in ("memory.state_bytes", peaks, "time.step.median")),
        _change(group, reference, "quality.steps_to_target", seeds=True, unreached="steps"),
        _change(group, reference, "quality.final_loss", seeds=True),
        _change(group, reference, UNSTEADINESS, seeds=True),
        Cell(PRINTED_SUMMARY[against] if own else None),
    ]


def _change(group: Group, reference: Group, field: str, **query: object) -> Cell:
    """Ours / theirs − 1 as a cell."""
    figure: Figure | None = seed_by_seed(lambda a, b: a / b - 1)({"field": field, **query}, group, reference)
    if figure is None or figure.value is None:
        return Cell(None)
    text = f"{100 * figure.value:+,.1f} %"
    if figure.low is not None and figure.high is not None:
        text += f" [{100 * figure.low:+,.1f}, {100 * figure.high:+,.1f}]"
    bound = {UNREACHED: f"over {text}: {UNREACHED}", OUTDONE: f"under {text}: {OUTDONE}", BOTH: f"{text}: {BOTH}"}
    return Cell(figure.value, bound.get(figure.bound, text), figure.records)


def _loras(records: Sequence[Record]) -> list[Setting]:
    return [setting for setting in settings_of(records) if setting.conditions["workload_name"] == "sd_lora"]


def _names(group: Group, setting: Setting) -> list[Cell]:
    rate = configured(group.records[0].result, "optimizer", "lr")
    names = texts(group.label, setting.label, records=group.records)
    return [*names, Cell(rate), *texts(group.status(), records=group.records)]


def _printed(printed: dict[str, str], group: Group) -> Cell:
    return Cell(printed.get(class_of(group.records[0])))


def _cell(group: Group, value: float | None, factor: float = 1.0) -> Cell:
    return scaled(value, factor, records=tuple(group.ok))


def _time(group: Group) -> Cell:
    """Milliseconds a step, with the spread of the steps inside a run."""
    median = group.median(step_seconds)
    p10 = group.median(lambda run: run.time.step.p10 if run.time.step else None)
    p90 = group.median(lambda run: run.time.step.p90 if run.time.step else None)
    if median is None or p10 is None or p90 is None:
        return Cell(None)
    text = f"{number(MS * median, 3)} [{number(MS * p10, 3)}, {number(MS * p90, 3)}]"
    return Cell(MS * median, text, tuple(group.ok))


def _loss(group: Group) -> Cell:
    cell = _cell(group, group.median(lambda run: run.quality.final_loss))
    seeds = f" (median of {len(group.ok)})" if len(group.ok) > 1 else ""
    return Cell(cell.value, f"{cell.text}{seeds}", cell.records)


def _training(group: Group) -> Cell:
    """Seconds of all steps, the middle one of the seeds."""
    ends = [record.result.quality.evaluations[-1:] for record in group.ok]
    seconds = sorted(last.seconds for end in ends for last in end if last.seconds is not None)
    return _cell(group, seconds[len(seconds) // 2] if seconds else None)


def _costs(group: Group) -> list[Cell]:
    """State, peak with its phase, and the most that another optimizer could save."""
    highest, phase = _peak(group)
    state = group.median(lambda run: run.memory.state_bytes)
    transient = group.median(lambda run: run.memory.transient_bytes)
    most = state + transient if state is not None and transient is not None else None
    share = group.median(lambda run: run.memory.state_8bit_share)
    return [
        _cell(group, state, 1 / MB),
        Cell(share, percent(share), tuple(group.ok)),
        _cell(group, highest, 1 / MB),
        Cell(phase, phase or DASH),
        _cell(group, most, 1 / MB),
    ]


def _peak(group: Group) -> tuple[float | None, str | None]:
    """Bytes at the peak, and the phase that sets it."""
    overall = group.median(peak)
    if overall is None:
        process = group.median(lambda run: run.memory.process_peak_bytes)
        return process, PROCESS if process is not None else None
    phases = {phase: _peak_of(group, phase) for phase in PHASES}
    counted = {phase: value for phase, value in phases.items() if value is not None}
    return overall, max(counted, key=lambda phase: counted[phase]) if counted else None


def _peak_of(group: Group, phase: str) -> float | None:
    return group.median(lambda run: peak(run, phase))
