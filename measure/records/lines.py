"""A line of steps.jsonl, key by key. What was not looked at in a step is absent from its line."""

from dataclasses import dataclass

from optimeter.measure.records.fields import REQUIRED, key


@dataclass(kw_only=True, slots=True)
class Gradient:
    """The whole gradient of a step that was looked at."""

    norm: float | None = key("Euclidean norm.")
    mean: float | None = key("Mean of its elements.")
    std: float | None = key("Their standard deviation; null where the sums are too coarse to tell.")
    nonfinite: int | None = key("Elements that are not finite.", "elements")


@dataclass(kw_only=True, slots=True)
class Look:
    """Memory after a step that was looked at."""

    state: dict[str, int] = key("The optimizer's state by role.", "bytes", dict)
    gradients: int | None = key("Gradients.", "bytes")
    allocated: int | None = key("What the allocator has given out.", "bytes")
    process: int | None = key("What the process has resident.", "bytes")


@dataclass(kw_only=True, slots=True)
class Line:
    """One training step: one line of steps.jsonl."""

    step: int = key("Number of the step, from 1.", default=REQUIRED)
    seconds: float | None = key("The whole step, without estimates and what the monitor takes.", "s")
    loss: float | None = key("Training loss.")
    lr: float | None = key("Learning rate of the first parameter group.")
    gradient: Gradient | None = key("The whole gradient.")
    weight_norm: float | None = key("Euclidean norm of the weights after the step.")
    update_norm: float | None = key("Euclidean norm of what the step added to them.")
    updated: float | None = key("Elements that the step changed, from a sample.", "elements")
    strayed: float | None = key(
        "Elements changed in rows without a gradient, from a sample; sparse gradients.", "elements"
    )
    strayed_moments: float | None = key("Elements of moments changed in such rows.", "elements")
    memory: Look | None = key("Memory after the step.")
    forward_seconds: float | None = key("Forward passes.", "s")
    backward_seconds: float | None = key("Backward passes.", "s")
    optimizer_seconds: float | None = key("The optimizer's step.", "s")
    estimator_seconds: float | None = key("The estimate of curvature before the step.", "s")
    extra: dict[str, float] = key("What the workload tells of a step.", default=dict)
    elapsed: float | None = key("Time of all steps and estimates so far.", "s")
    not_finite: list[str] = key("Keys of this line that are null as they were not finite.", default=list)
