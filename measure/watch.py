"""Peaks by phase where no allocator keeps a count: one more step after the run, its tensors followed one by one."""

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from measure.live import LiveBytes
from measure.memory import walk
from measure.predict import without_compiling

if TYPE_CHECKING:
    from measure.run import Training


def watch(training: "Training", batches: list[Any]) -> tuple[dict[str, int], int]:
    """(bytes of live tensors at the peak of each phase and overall, the most that the step needs for a while).

    Takes one more step on `batches` and one more evaluation. Not for optimizers that call a closure. Raises what the
    optimizer's own code raises.
    """
    model, optimizer = training.model, training.optimizer
    optimizer.zero_grad()
    state = (held for _, held in walk(optimizer) if isinstance(held, Tensor))
    peaks: dict[str, int] = {}
    with without_compiling(), LiveBytes([*model.parameters(), *model.buffers(), *state, *tensors(batches)]) as live:
        phase = partial(live.phase, peaks)
        if training.settings.hessian_every:
            with phase("estimator"):
                training.estimate_curvature(batches[0])
        loss = training.fill_gradients(batches, phase)
        before = live.live
        with phase("step"):
            training.update(loss)
        transient = peaks["step"] - max(before, live.live)  # what the step leaves behind is state
        with phase("evaluation"):
            training.held_out()
    return peaks | {"overall": max(peaks.values())}, transient


def tensors(batches: list[Any]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(batches) if isinstance(leaf, Tensor)]
