"""Peaks by phase where no allocator keeps a count: one more step after the run, its tensors followed one by one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from optimeter.measure.memory.ledger import walk
from optimeter.measure.memory.live import LiveBytes
from optimeter.measure.records.write import in_short

if TYPE_CHECKING:
    from optimeter.measure.methods.loop import Loop


@dataclass(frozen=True)
class Peaks:
    """The most that live tensors held: in each phase and `overall`, and in the optimizer's step beside its state."""

    by_phase: dict[str, int]  # bytes
    transient_bytes: int


def peaks_of_a_step(loop: "Loop", batches: list[Any]) -> tuple[Peaks | None, str | None]:
    """Peaks of one more step and one more evaluation; or None, and why they cannot be told. Empties `batches`."""
    if loop.recipe.closure:
        return None, "the step calls a closure"
    if compiled():
        return None, "the step is compiled, and what it takes inside is not seen"
    try:
        return follow(loop, batches), None
    except Exception as error:
        return None, in_short(error)


def follow(loop: "Loop", batches: list[Any]) -> Peaks:
    """Make the step and the evaluation. Work that an optimizer does only every few steps is seen if this one does it.

    Raises what the optimizer's own code raises.
    """
    loop.optimizer.zero_grad()
    with LiveBytes(tensors_of(loop, batches)) as live:
        if loop.recipe.hessian_every:
            with live.phase("estimator"):
                loop.estimate_curvature(batches[0])
        loss = _gradients(loop, batches, live)
        before = live.live
        with live.phase("step"):
            loop.update(loss)
        transient = live.peaks["step"] - max(before, live.live)  # what the step leaves behind is state
        batches.clear()  # they shall be free to go
        with live.phase("evaluation"):
            loop.held_out()
    return Peaks(live.peaks | {"overall": max(live.peaks.values())}, transient)


def tensors_of(loop: "Loop", batches: list[Any]) -> list[Tensor]:
    """What lives before the step: of the model, the batches and the optimizer."""
    tensors = [*loop.model.parameters(), *loop.model.buffers()]
    tensors += [leaf for leaf in tree_leaves(batches) if isinstance(leaf, Tensor)]
    tensors += [state for _, state in walk(loop.optimizer) if isinstance(state, Tensor)]
    return tensors


def _gradients(loop: "Loop", batches: list[Any], live: LiveBytes) -> Tensor:
    """As `Loop.gradients`, each pass in its phase."""
    loop.optimizer.zero_grad()
    losses = []
    for batch in batches:
        with live.phase("forward"):
            loss = loop.forward(batch, len(batches))
        with live.phase("backward"):
            loss.backward()
        losses.append(loss.detach())
    loop.clip()
    return torch.stack(losses).sum()


def compiled() -> bool:
    """Whether Dynamo has compiled anything in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"].get("unique_graphs", 0) > 0
