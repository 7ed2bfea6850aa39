"""Peaks by phase where no allocator keeps a count: one more step after the run, its tensors followed one by one."""

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from optimeter.measure.memory.ledger import walk
from optimeter.measure.memory.live import LiveBytes
from optimeter.measure.records.record import in_short

if TYPE_CHECKING:
    from optimeter.measure.methods.train import Training


def watched(training: "Training", batches: list[Any]) -> tuple[dict[str, Any], str]:
    """The record's peaks and what the step takes beside the state, from the tensors themselves; or nothing, and why.

    Called after the run, on a device whose allocator keeps no count.
    """
    if training.settings.closure:
        return {}, "the step calls a closure"
    if compiled():
        return {}, "the step is compiled, and what it takes inside is not seen"
    try:
        peaks, transient = watch(training, batches)
    except Exception as error:
        return {}, in_short(error)
    return {"peak_bytes": peaks, "peak_source": "tensors", "transient_bytes": transient}, ""


def watch(training: "Training", batches: list[Any]) -> tuple[dict[str, int], int]:
    """(Peak bytes of live tensors by phase and overall, temporary bytes of the optimizer's step).

    Takes one more step on `batches`, which it empties, and one more evaluation. Work that an optimizer does only every
    few steps is seen if this step does it. Raises what the optimizer's own code raises.
    """
    model, optimizer = training.model, training.optimizer
    optimizer.zero_grad()
    held = [*model.parameters(), *model.buffers(), *(one for one in tree_leaves(batches) if isinstance(one, Tensor))]
    held += [one for _, one in walk(optimizer) if isinstance(one, Tensor)]
    with LiveBytes(held) as live:
        held.clear()  # the batches shall be free to go
        if training.settings.hessian_every:
            with live.phase("estimator"):
                training.estimate_curvature(batches[0])
        loss = training.fill_gradients(batches, live.phase)
        before = live.live
        with live.phase("step"):
            training.update(loss)
        transient = live.peaks["step"] - max(before, live.live)  # what the step leaves behind is state
        batches.clear()
        with live.phase("evaluation"):
            training.held_out()
    return live.peaks | {"overall": max(live.peaks.values())}, transient


def compiled() -> bool:
    """Whether Dynamo has compiled anything in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"].get("unique_graphs", 0) > 0
