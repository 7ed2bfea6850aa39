"""One observed step, and how its values get from the device to a line of the record without stopping the loop."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from optimeter.measure.devices import Device

SPANS = ("forward", "backward", "estimator", "excluded", "sampling")
CHANGES = ("weight_norm", "update_norm", "updated", "strayed", "strayed_moments")
RESOLVED = 1e-6  # of the squared mean: a smaller variance is lost in the difference of two fp32 sums
Span = tuple[Any, Any]  # two stamps of the device
Value = Tensor | float


@dataclass
class Observation:
    """An optimizer step while it is being made: stamps are the device's, values stay on the device."""

    index: int
    begin: Any
    sampled: bool
    closure: bool = False  # forward and backward lie inside the optimizer's step
    forward: list[Span] = field(default_factory=list)
    backward: list[Span] = field(default_factory=list)
    optimizer: Span | None = None
    estimator: list[Span] = field(default_factory=list)  # since the step before; no part of the step, but of the run
    excluded: list[Span] = field(
        default_factory=list
    )  # what of it is not the step: evaluations, the monitor's own work
    sampling: list[Span] = field(default_factory=list)
    host_seconds: float = 0.0  # the optimizer's step as the host sees it
    losses: list[Value] = field(default_factory=list)
    lr: Value | None = None
    values: dict[str, Value] = field(default_factory=dict)
    extra: dict[str, Value] = field(default_factory=dict)
    gradient_elements: int = 0
    memory: dict[str, Any] = field(default_factory=dict)  # bytes

    def tensors(self) -> dict[str, Tensor]:
        """Everything that must be read back, by a name unique in this step."""
        found = {f"loss{i}": loss for i, loss in enumerate(self.losses)} | {"lr": self.lr} | self.values
        found |= {f"extra.{name}": value for name, value in self.extra.items()}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def settle(self, numbers: dict[str, float]) -> None:
        """Put the numbers in the place of the tensors that they were."""
        self.losses = [numbers.get(f"loss{i}", loss) for i, loss in enumerate(self.losses)]
        self.lr = numbers.get("lr", self.lr)
        self.values = {name: numbers.get(name, value) for name, value in self.values.items()}
        self.extra = {name: numbers.get(f"extra.{name}", value) for name, value in self.extra.items()}

    def durations(self, device: Device) -> dict[str, float | None]:
        """Seconds of the whole step and of its parts, None where no event told; the device must have passed all of it.

        Where no forward of the model was seen, neither is it known when the step began.
        """
        assert self.optimizer is not None
        spent = {name: sum(device.seconds(*span) for span in getattr(self, name)) for name in SPANS}
        step = device.seconds(self.begin, self.optimizer[1]) - spent["excluded"]
        return {
            "step": step if self.forward else None,
            "forward": spent["forward"] if self.forward else None,
            "backward": spent["backward"] if self.backward and not self.closure else None,
            "optimizer": None if self.closure else device.seconds(*self.optimizer),
            "estimator": spent["estimator"],
            "sampling": spent["sampling"],
        }

    def line(self, durations: dict[str, float | None]) -> dict[str, Any]:
        """The record's line, after `settle`; what was not sampled at this step is absent."""
        loss = sum(map(float, self.losses)) / len(self.losses) if self.losses else None
        line: dict[str, Any] = {"step": self.index, "seconds": durations.get("step"), "loss": loss, "lr": self.lr}
        if "gradient_norm" in self.values:
            values = {name: float(value) for name, value in self.values.items()}
            count = max(self.gradient_elements, 1)
            mean, norm = values["gradient_sum"] / count, values["gradient_norm"]
            variance = norm**2 / count - mean**2 if math.isfinite(norm) else math.nan
            deviation = (
                variance**0.5 if variance > RESOLVED * mean**2 else None if math.isfinite(variance) else math.nan
            )
            deviation = 0.0 if norm == 0 else deviation
            bad = int(values.get("gradient_nonfinite", 0))
            line["gradient"] = {"norm": norm, "mean": mean, "std": deviation, "nonfinite": bad}
            line |= {name: values[name] for name in CHANGES if name in values}
            line |= {"memory": self.memory} if self.memory else {}
        line |= {f"{name}_seconds": durations.get(name) for name in ("forward", "backward", "optimizer")}
        line |= {"estimator_seconds": durations["estimator"]} if self.estimator else {}
        return line | ({"extra": {name: float(value) for name, value in self.extra.items()}} if self.extra else {})
