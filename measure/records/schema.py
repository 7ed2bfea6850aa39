"""The record of a run, key by key: the one definition that reading, writing, checking and docs/record.md come from.

`Findings` is what a measure finds; `Result` adds which run it was and how it was made, and is what `result.json` holds.
The names of the fields are the keys of the JSON, in the same nesting. Blocks are never None in Python: an empty one has
its fields None and is written as null. Sizes are in bytes and times in seconds, unless the unit says otherwise.

To add a key: add a field; to rename one or change its meaning: raise SCHEMA and teach convert.py the old form.
"""

from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Protocol, TypeAlias, get_args

from optimeter.measure.records.environment import Environment, Gpu
from optimeter.measure.records.fields import JSON, REQUIRED, key, names

SCHEMA = 2
Status: TypeAlias = Literal["ok", "diverged", "oom", "timeout", "crashed", "error", "unsupported", "interrupted"]
STATUSES: tuple[Status, ...] = get_args(Status)
FINISHED: tuple[Status, ...] = ("ok", "diverged", "unsupported")  # kept when the same command is given again
FAILED: tuple[Status, ...] = ("error", "crashed", "oom", "timeout")


@dataclass(kw_only=True, slots=True)
class Parameters:
    """What is trained."""

    count: int | None = key("Elements of all parameters of the model.", "elements")
    trainable: int | None = key("Elements of the parameters that require a gradient.", "elements")
    bytes: int | None = key("Storage of all parameters, each storage counted once.", "bytes")


class Holding(Protocol):
    """What a count of an optimizer's state tells, as `Ledger` does."""

    @property
    def state_bytes(self) -> int: ...
    @property
    def by_role(self) -> dict[str, int]: ...
    @property
    def by_dtype(self) -> dict[str, int]: ...
    @property
    def by_device(self) -> dict[str, int]: ...
    @property
    def share_8bit(self) -> float: ...


@dataclass(kw_only=True, slots=True)
class Memory:
    """What the optimizer holds, and what a step takes."""

    state_bytes: int | None = key("What the optimizer holds beside parameters and gradients.", "bytes")
    state_bytes_per_parameter: float | None = key("The same, for each trainable element.", "bytes/element")
    by_role: dict[str, int] = key(
        "The same by role: `first_moment`, `second_moment`, … or the state's key.", "bytes", dict
    )
    by_dtype: dict[str, int] = key("The same by the type of its elements.", "bytes", dict)
    by_device: dict[str, int] = key("The same by the type of device that it lies on.", "bytes", dict)
    state_8bit_share: float | None = key("Share of the trainable elements with state in 8 bits or fewer.", "1")
    predicted_state_bytes: int | None = key("`state_bytes` as predicted by steps on fake tensors.", "bytes")
    allocator_state_bytes: int | None = key("What the allocator saw the state take.", "bytes")
    unexplained_bytes: int | None = key("`allocator_state_bytes` − `state_bytes`.", "bytes")
    gradient_bytes: int | None = key("Storage of the gradients.", "bytes")
    transient_bytes: int | None = key("The most that a step allocates beyond what it leaves behind.", "bytes")
    peak_bytes: dict[str, int] | None = key(
        "Largest allocation in each phase (`forward`, `backward`, `step`, `estimator`, `evaluation`) and `overall`.",
        "bytes",
    )
    peak_source: str | None = key(
        "Where the peaks come from: `allocator`, or `tensors` followed in a step after the run."
    )
    process_peak_bytes: int | None = key("The most memory that the process had resident.", "bytes")

    @classmethod
    def of(cls, held: Holding, trainable: int, **further: Any) -> "Memory":
        """The block for a counted state over `trainable` elements; `further` are the other keys that are known."""
        return cls(
            state_bytes=held.state_bytes,
            state_bytes_per_parameter=held.state_bytes / max(trainable, 1),
            by_role=held.by_role,
            by_dtype=held.by_dtype,
            by_device=held.by_device,
            state_8bit_share=held.share_8bit,
            **further,
        )


@dataclass(kw_only=True, slots=True)
class Spread:
    """A quantity that was measured several times."""

    median: float = key("Median.", default=REQUIRED)
    p10: float = key("10th percentile.", default=REQUIRED)
    p90: float = key("90th percentile.", default=REQUIRED)
    n: int = key("Number of values.", "values", REQUIRED)


@dataclass(kw_only=True, slots=True)
class Times:
    """How long the steps took, after the warm-up."""

    step: Spread | None = key("A whole step, without estimates, evaluation and what the monitor itself takes.", "s")
    forward: Spread | None = key("The forward passes of a step.", "s")
    backward: Spread | None = key("The backward passes of a step.", "s")
    optimizer: Spread | None = key("The optimizer's step, on the device.", "s")
    optimizer_host: Spread | None = key(
        "How long the optimizer's step keeps the host, where that is another time.", "s"
    )
    estimator: Spread | None = key("One estimate of curvature.", "s")
    first_step: float | None = key("The first step: allocates state, compiles.", "s")
    wall: float | None = key("The whole run, from the start of its process.", "s")
    optimizer_share: float | None = key("Median of `optimizer` / median of `step`.", "1")


@dataclass(kw_only=True, slots=True)
class Evaluation:
    """The held-out loss after a number of steps."""

    step: int = key("Training steps made before.", "steps", REQUIRED)
    seconds: float | None = key("Time of these steps, estimates included and evaluations not.", "s")
    loss: float | None = key("Mean held-out loss; of `toy` the function's value.")
    score: float | None = key("The workload's score; the loss where it has none.")


@dataclass(kw_only=True, slots=True)
class Quality:
    """What a training run reached."""

    first_loss: float | None = key("Held-out loss before the first step.")
    final_loss: float | None = key("Held-out loss after the last step; null if it diverged.")
    best_loss: float | None = key("Least held-out loss of all evaluations.")
    train_loss: float | None = key("Mean training loss of the last tenth of the steps.")
    score: float | None = key("Score after the last step.")
    score_name: str | None = key("What the score is: `loss`, `accuracy`, …")
    higher_is_better: bool | None = key("Whether a higher score is a better one.")
    target: float | None = key("The score that is to be reached.")
    steps_to_target: int | None = key("Steps until an evaluation first reached it.", "steps")
    seconds_to_target: float | None = key("Time of these steps.", "s")
    evaluations: list[Evaluation] = key("Every evaluation, in order.", default=list)


@dataclass(kw_only=True, slots=True)
class Checks:
    """What must be true of an honest run; false makes its numbers invalid."""

    parameters_moved: bool | None = key("Every trainable parameter differs from its start.")
    unmoved: list[str] = key("Names of the trainable parameters that do not.", default=list)
    frozen_unchanged: bool | None = key("Every other parameter is what it was, to the bit.")
    finite: bool | None = key("Every parameter is finite after the last step.")
    state_grew: bool | None = key("The optimizer's state grew from look to look: a leak.")
    baseline_sound: bool | None = key("The baseline's parameters moved and are finite.")


@dataclass(kw_only=True, slots=True)
class StepSide:
    """One of the two optimizers of a comparison of steps."""

    optimizer: str | None = key("Its name.")
    seconds: Spread | None = key("A step, until the device has done it; of each block the mean.", "s")
    mean_seconds: float | None = key("Mean step of all blocks.", "s")
    host_seconds: Spread | None = key("How long a step keeps the host; of each block the mean.", "s")
    first_step: float | None = key("The first step: allocates state, compiles.", "s")
    block_steps: int | None = key("Steps in a block.", "steps")
    state_bytes: int | None = key("What the optimizer holds.", "bytes")
    gradient_bytes: float | None = key("Gradients of one step; of sparse ones the mean over batches.", "bytes")
    touched_elements: float | None = key(
        "Elements that have a gradient; of sparse ones the mean over batches.", "elements"
    )
    minimum_bytes: float | None = key("The least that a step must move to and from memory.", "bytes")
    bytes_per_parameter: float | None = key("The same, for each element with a gradient.", "bytes/element")
    working_set_bytes: float | None = key("Parameters, gradients and state together.", "bytes")
    bytes_per_second: float | None = key("`minimum_bytes` / median step.", "bytes/s")
    copy_share: float | None = key("`bytes_per_second` / the rate of a plain copy on this machine.", "1")
    fits_in_cache: bool | None = key("Whether the working set fits in the last cache.")
    raw_seconds: list[float] = key("A step of each block, in the order in which they were made.", "s", list)


@dataclass(kw_only=True, slots=True)
class StepComparison:
    """`measure=step`: the optimizer's step alone against a baseline's, in pairs of blocks in random order."""

    verdict: str | None = key("FAST, SLOW, SAME, or AMBG where the interval does not tell.")
    ratio: float | None = key("Median over the pairs of candidate's / baseline's time.", "1")
    low: float | None = key("Lower end of the ratio's interval.", "1")
    high: float | None = key("Upper end.", "1")
    confidence: float | None = key("Confidence of the interval, by bootstrap over the pairs.", "1")
    delta: float | None = key("How far from 1 a ratio must be for FAST or SLOW.", "1")
    pairs: int | None = key("Pairs of blocks.", "pairs")
    log_ratios: list[float] = key("Natural logarithm of the ratio of each pair, in order.", "1", list)
    shapes: str | None = key("Shapes of the parameters, equal ones counted together: `256*8x1024+4096`.")
    gradients: str | None = key("Kind of the gradients: `dense`, `sparse`.")
    copy_bytes_per_second: Spread | None = key("Rate of a plain copy, before and after.", "bytes/s")
    cache_bytes: int | None = key("Size of the last cache.", "bytes")
    notes: dict[str, str] = key("What must be said beside the figures, by topic.", default=dict)
    candidate: StepSide = key("The optimizer.", default=StepSide)
    baseline: StepSide = key("What it is compared with.", default=StepSide)


@dataclass(kw_only=True, slots=True)
class Plan:
    """`measure=plan`: what a run would hold, told by shapes alone; activations depend on the batch and come on top."""

    parameter_bytes: int | None = key("Parameters.", "bytes")
    buffer_bytes: int | None = key("Buffers of the model.", "bytes")
    gradient_bytes: int | None = key("Gradients of the trainable parameters; null for sparse ones.", "bytes")
    state_bytes: int | None = key("The optimizer's state.", "bytes")
    transient_bytes: int | None = key("The most that a step allocates beyond what it leaves behind.", "bytes")
    device: str | None = key("Device whose code was stepped.")
    total_bytes: int | None = key("Sum of the five.", "bytes")
    optimizer_bytes: int | None = key(
        "`state_bytes` + `transient_bytes`: the most that another optimizer can save.", "bytes"
    )
    context_bytes: int | None = key("What CUDA itself takes on a card, about.", "bytes")
    fits: dict[str, bool] = key("Size of a card in GiB → whether total and context fit on it.", default=dict)
    host_reads: int | None = key("Times that a step reads a value back to the host.", "reads/step")


@dataclass(kw_only=True, slots=True)
class OverheadComparison:
    """How much longer a step takes in one way than in another, in pairs of blocks in random order."""

    a: str | None = key("The one way.")
    b: str | None = key("The other way.")
    difference: float | None = key("Median over the pairs of time b / time a − 1.", "1")
    low: float | None = key("Lower end of its interval.", "1")
    high: float | None = key("Upper end.", "1")
    confidence: float | None = key("Confidence of the interval, by bootstrap over the pairs.", "1")
    pairs: int | None = key("Pairs of blocks.", "pairs")
    log_ratios: list[float] = key("Natural logarithm of time b / time a of each pair, in order.", "1", list)


@dataclass(kw_only=True, slots=True)
class Overhead:
    """`measure=overhead`: what the monitor itself costs, with delays of known size as controls."""

    block_steps: int | None = key("Steps in a block.", "steps")
    step_seconds: float | None = key("Median step.", "s")
    comparisons: dict[str, OverheadComparison] = key(
        "Each comparison, by what is compared with the monitor off.", "", dict
    )
    sample_every: int | None = key("Steps between two looks at norms and memory.", "steps")
    sampling_share: float | None = key("What looking and writing lines cost, spread over all steps.", "1")
    resolved: bool | None = key("Whether the controls came out as they must.")
    limit: float | None = key("What the monitor may cost, of the step time.", "1")
    low: float | None = key("Lower end of the interval of its cost.", "1")
    high: float | None = key("Upper end.", "1")
    under_limit: bool | None = key("Whether `high` is under `limit`.")
    verdict: str | None = key("The same in words.")


@dataclass(kw_only=True, slots=True)
class Findings:
    """What a measure finds out about one optimizer on one workload."""

    status: Status = key("How the run ended.", default=REQUIRED)
    reason: str | None = key("Why it did not end as ok; one line.")
    summary: str | None = key("What was found, in the one line that ends the run in the terminal.")
    steps: int = key("Steps that were made.", "steps", 0)
    parameters: Parameters = key("What is trained.", default=Parameters)
    memory: Memory = key("What the optimizer holds, and what a step takes.", default=Memory)
    time: Times = key("How long the steps took.", default=Times)
    quality: Quality = key("What training reached.", default=Quality)
    checks: Checks = key("What must be true of an honest run.", default=Checks)
    step: StepComparison = key("Of `measure=step`: the comparison.", default=StepComparison)
    plan: Plan = key("Of `measure=plan`: the plan.", default=Plan)
    overhead: Overhead = key("Of `measure=overhead`: what the monitor costs.", default=Overhead)
    extra: dict[str, JSON] = key("The own block of a measure that is not the project's.", default=dict)
    missing: dict[str, str] = key("Path of a key that is null → why.", default=dict)


@dataclass(kw_only=True, slots=True)
class Result(Findings):
    """The record of a run: what `result.json` holds."""

    schema: int = key("Version of this definition.", default=SCHEMA)
    run: str | None = key("The run's id: 12 hex digits of a hash over all that makes it another run.")
    name: str | None = key("Name of the sweep.")
    measure: str | None = key("Name of the measure: `train`, `step`, `plan`, `overhead`, or one's own.")
    optimizer: str = key("Name of the optimizer.", default="?")
    optimizer_target: str | None = key("Its class.")
    workload: str = key("Name of the workload.", default="?")
    size: str | None = key("Size of the workload, where it has several.")
    shaped_by: list[str] = key("Arguments that shape the workload's model, as `Workload.shaped_by`.", default=list)
    follows: list[str] = key("Its arguments that follow the optimizer, as `Workload.follows`.", default=list)
    seed: int | None = key("Seed of weights and batches.")
    device: str | None = key("Device, as torch calls its type: `cpu`, `cuda`.")
    dtype: str | None = key("Type of the weights.")
    command: str | None = key("The command that made it.")
    config: dict[str, JSON] = key("The whole configuration, as in `config.yaml`.", default=dict)
    environment: Environment = key("Where it was made.", default=Environment)
    data: dict[str, str] = key("File of the data → its SHA-256.", default=dict)
    weights: dict[str, JSON] = key("Where the first weights came from.", default=dict)
    gpu: Gpu = key("What the GPU did meanwhile.", default=Gpu)
    compiled: bool = key("Whether torch.compile compiled anything.", default=False)
    started: str | None = key("When it began.", "ISO 8601")
    finished: str | None = key("When it ended.", "ISO 8601")

    @classmethod
    def of(cls, findings: Findings, **provenance: Any) -> "Result":
        """The record of a run from what its measure found and the further keys."""
        return cls(**{name: getattr(findings, name) for name in names(Findings)}, **provenance)


# What everyone may look up in a configuration, with its type; it has more, and may lack any of these.
CONFIGURATION: dict[str, type | UnionType] = {
    "name": str | None,
    "seed": int | None,
    "device": str,
    "dtype": str,
    "steps": int | None,
    "eval_every": int | None,
    "record_every": int,
    "baseline": str | None,
    "optimizer": dict,
    "workload": dict,
    "measure": dict,
    "choices": dict,
}
