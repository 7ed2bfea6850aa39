"""How long steps and their parts took, as it becomes known."""

from optimeter.measure.devices import Device
from optimeter.measure.monitor.observation import Observation, Span
from optimeter.measure.records.schema import Times
from optimeter.measure.statistics import spread

TIMED = ("step", "forward", "backward", "optimizer")
HOST = "optimizer_host"


class Timings:
    """Seconds of each step that has been read back, in order; what is not known of a step is left out.

    seconds: by part of the step; HOST is the optimizer's step as the host sees it.
    sampling: what each look at norms and memory took.
    elapsed: of all steps so far, estimates of curvature included; None where it could not be told.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {name: [] for name in (*TIMED, HOST)}
        self.sampling: list[float] = []
        self.elapsed: float | None = 0.0

    def add(self, step: Observation) -> dict[str, float | None]:
        """Take in a step that the device has passed; returns its durations."""
        durations = step.durations(self.device)
        for name in TIMED:
            if (seconds := durations[name]) is not None:
                self.seconds[name].append(seconds)
        self.seconds[HOST].append(step.host_seconds)
        if step.sampled:
            self.sampling.append(durations["sampling"] or 0.0)
        whole = durations["step"]
        if whole is None or self.elapsed is None:
            self.elapsed = None
        else:
            self.elapsed += whole + (durations["estimator"] or 0.0)
        return durations

    def missing(self) -> dict[str, str]:
        """Why times of the record are null, by their path."""
        empty = [name for name in TIMED if not self.seconds[name]]
        reason = "the step calls a closure" if "optimizer" in empty else "no forward of the model was seen"
        return {f"time.{name}": reason for name in empty}

    def block(self, estimates: list[Span]) -> Times:
        """The record's block, the first steps left out; estimates: of curvature, all of them."""
        spreads = {name: spread(values[warm_up_steps(len(values)) :]) for name, values in self.seconds.items()}
        step, optimizer = spreads["step"], spreads["optimizer"]
        return Times(
            step=step,
            forward=spreads["forward"],
            backward=spreads["backward"],
            optimizer=optimizer,
            optimizer_host=None if self.device.host_waits else spreads[HOST],  # the host waits: the same number
            estimator=spread([self.device.seconds(*span) for span in estimates]),
            first_step=self.seconds["step"][0] if self.seconds["step"] else None,
            optimizer_share=optimizer.median / step.median if step and optimizer else None,
        )


def warm_up_steps(steps: int) -> int:
    """How many of the first steps do not count: a tenth, at least one, at most fifty."""
    return min(max(steps // 10, 1), 50) if steps > 1 else 0
