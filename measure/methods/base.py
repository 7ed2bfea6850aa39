"""What a way to measure is. A measure of your own subclasses `Measure`; a file conf/measure/NAME.yaml names it.

    # my_conf/measure/loss_range.yaml
    _target_: my_package.LossRange
    batches: 16

    # my_package.py
    from optimeter import Findings, Loop, Measure, Trial

    class LossRange(Measure):
        def __init__(self, batches: int = 16) -> None:
            if batches < 2:
                raise ValueError(f"measure.batches must be a whole number of at least 2, not {batches}")
            self.batches = batches

        def run(self, trial: Trial) -> Findings:
            loop = Loop(trial.workload, trial.optimizer, trial.settings, trial.device)
            batches = islice(trial.workload.batches("train", trial.settings.seed), self.batches)
            losses = [float(loop.gradients([loop.placed(batch)])) for batch in batches]
            return Findings(status="ok", steps=0, extra={"lowest": min(losses), "highest": max(losses)})

        def line(self, findings: Findings) -> str:
            return f"losses from {findings.extra['lowest']:.4g} to {findings.extra['highest']:.4g}"

`python bench.py --config-dir my_conf measure=loss_range …` runs it, each trial in a process of its own. Around every
measure the harness watches the GPU, notes where weights came from, catches errors and writes the record. Its tables
are functions over the records, each named by a my_conf/table/NAME.yaml: `python -m reports --config-dir my_conf …`
(reports/plugins.py; examples/plugin has both).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from optimeter.measure.methods.settings import Settings
from optimeter.workloads.core.workload import Workload

if TYPE_CHECKING:
    from optimeter.measure.devices import Device
    from optimeter.measure.records.schema import Findings

Build = Callable[[Sequence[tuple[str, Tensor]]], Optimizer]
News = tuple[int, int, float | None]  # steps or pairs done, how many there will be, the last loss if there is one


@dataclass(frozen=True)
class Recipe:
    """How to build one optimizer, and what its YAML says under `about` that a training loop must know."""

    name: str  # that of its YAML, as it stands in reports
    build: Build  # (name, parameter) pairs → the optimizer; raises what its constructor raises
    cls: type[Optimizer] = Optimizer  # its class, for what can be asked of it before it is built
    closure: bool = False  # its step() is called with a closure that computes loss and gradients
    hessian_every: int | None = None  # steps between two curvature estimates, the first before step 1; or none
    gradients: str = "dense"  # the kind that it takes; or "sparse", "both"
    roles: Mapping[str, str] = field(default_factory=dict)  # state key → role in the memory ledger


def ignore(news: object) -> None:
    """A sink for lines or progress that nobody wants."""


@dataclass(frozen=True)
class Trial:
    """What a measure is given: what to measure, how to train, where, and where to tell of it.

    A measure that draws random numbers seeds torch with `settings.seed` itself, and builds models on the CPU before
    they move to `device.torch`: then every optimizer starts from the same weights.
    """

    workload: Workload
    optimizer: Recipe
    settings: Settings
    device: "Device"
    others: Mapping[str, Recipe] = field(default_factory=dict)  # further optimizers by role, as `baseline`
    write: Callable[[dict[str, Any]], object] = ignore  # takes one line of steps.jsonl: plain JSON with the key `step`
    progress: Callable[[News], object] = ignore  # call it as often as you like: the terminal shows a few a second


class Measure:
    """One way to measure an optimizer on a workload; its constructor takes the arguments in its YAML.

    The constructor raises ValueError, in one line, for a value that cannot be; the sweep is then refused before
    anything runs. Two keys of a YAML are no arguments: `optimizers: {baseline: ${baseline}}` names further optimizers,
    for the roles in the class's `optimizers`, which come as `trial.others`; `shapes: 8*1024x1024`, where given, puts
    such parameters in the workload's place.
    """

    optimizers: tuple[str, ...] = ()  # the roles of the further optimizers that it needs
    trains = True  # whether it makes training steps; where it does not, neither curvature nor clipping is asked for

    def fits(self, trial: Trial) -> str | None:
        """Why it cannot measure this optimizer on this workload, in a few words, or None. Called before `run`."""
        if reason := unsuitable(trial.workload, trial.optimizer):
            return reason
        return cannot_train(trial) if self.trains else None

    def run(self, trial: Trial) -> "Findings":
        """Measure once, in this process, and return what was found: bytes, seconds, losses.

        `status` is "ok" or "diverged". A block of one's own goes into `extra`, as plain JSON. What is None for a reason
        has it in `missing`, under its path ("memory.peak_bytes"). It may raise: Unsupported, and a
        workload's NoTask, become the status *unsupported* with their text, out of memory *oom*, all else *error*.
        """
        raise NotImplementedError(f"{type(self).__name__} has no run(trial)")

    def line(self, findings: "Findings") -> str:
        """What was found, in the one line that ends a run in the terminal; "" where there is nothing to say."""
        return ""


def unsuitable(workload: Workload, recipe: Recipe) -> str | None:
    """Why an optimizer cannot step this workload's parameters, or None."""
    about = {"gradients": recipe.gradients, "closure": recipe.closure, "hessian_every": recipe.hessian_every}
    return workload.unsuitable(about)


def cannot_train(trial: Trial) -> str | None:
    """Why these settings cannot train this workload by this optimizer, or None."""
    if trial.optimizer.hessian_every and (reason := no_curvature(trial.optimizer.cls, trial.workload)):
        return reason
    if trial.settings.clip_norm is not None and trial.workload.gradients == "sparse":
        return "clip_norm needs dense gradients, and this workload's are sparse"
    return None


def no_curvature(cls: type, workload: Workload) -> str | None:
    """Why curvature cannot be estimated for an optimizer of this class on this workload, or None."""
    if not hasattr(cls, "update_hessian") or not hasattr(cls, "curvature_from"):
        return f"about.hessian_every is set, but {cls.__name__} has no update_hessian(loss, samples) and curvature_from"
    if cls.curvature_from == "sampled_loss" and type(workload).sampled_loss is Workload.sampled_loss:
        return "it estimates curvature from labels that the model draws, and this workload has no sampled_loss for that"
    return None
