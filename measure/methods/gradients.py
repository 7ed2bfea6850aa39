"""Gradients for a step without a backward pass: Gaussian noise, other noise before each block of steps."""

import copy
import itertools
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from optimeter.measure.methods.loop import Loop

STD = 0.01
SLACK = 1 << 16  # elements by which the pool of noise is longer than the largest parameter
BATCHES = 8  # of a sparse workload, whose rows are touched in turn


class Noise:
    """Dense gradients: windows, at random places, of one pool of noise. They are written into the same tensors."""

    def __init__(self, parameters: Sequence[Tensor], seed: int) -> None:
        self.draw = random.Random(seed)
        largest = max(parameters, key=lambda p: p.numel())
        generator = torch.Generator(largest.device).manual_seed(seed)
        size, kind = largest.numel() + SLACK, {"device": largest.device, "dtype": largest.dtype}
        self.pool = torch.randn(size, generator=generator, **kind).mul_(STD)  # type: ignore[call-overload]

    def window(self, shape: torch.Size) -> Tensor:
        """A view of the pool, of this shape."""
        offset = self.draw.randrange(SLACK)
        return self.pool[offset : offset + shape.numel()].view(shape)

    def write(self, parameters: Sequence[Tensor]) -> None:
        """Give every parameter its gradient; a step may overwrite it, the next call heals that."""
        for p in parameters:
            if p.grad is None:
                p.grad = torch.empty_like(p)
            p.grad.copy_(self.window(p.shape))

    def touched(self, parameters: Sequence[Tensor]) -> tuple[float, float]:
        """(elements, bytes) of one step's gradients."""
        return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)


class TouchedRows(Noise):
    """Sparse gradients: noise in the rows that real batches touch, with their multiplicity."""

    def __init__(self, loop: Loop) -> None:
        workload, seed = loop.workload, loop.settings.seed
        super().__init__(loop.parameters, seed)
        scratch = copy.deepcopy(loop.model)
        parameters = [p for p in scratch.parameters() if p.requires_grad]
        self.rows: list[list[Tensor | None]] = []  # of each batch, for each parameter; None where it is dense
        for batch in itertools.islice(workload.batches("train", seed), BATCHES):
            scratch.zero_grad()
            workload.loss(scratch, loop.placed(batch)).backward()
            self.rows.append([row_indices(p.grad) for p in parameters])

    def write(self, parameters: Sequence[Tensor]) -> None:
        for p, indices in zip(parameters, self.draw.choice(self.rows), strict=True):
            if indices is None:
                super().write([p])
            else:
                values = self.pool.new_empty(indices.shape[1], *p.shape[1:]).normal_(std=STD)
                p.grad = torch.sparse_coo_tensor(indices, values, p.shape, check_invariants=False)

    def touched(self, parameters: Sequence[Tensor]) -> tuple[float, float]:
        """Means over the batches: elements of the rows that are touched, each once, and bytes of values and indices."""
        counts = [self._touched(p, indices) for rows in self.rows for p, indices in zip(parameters, rows, strict=True)]
        elements, size = (sum(column) / len(self.rows) for column in zip(*counts, strict=True))
        return elements, size

    def _touched(self, p: Tensor, indices: Tensor | None) -> tuple[int, int]:
        if indices is None:
            return p.numel(), p.numel() * p.element_size()
        width = p[0].numel()
        values = indices.shape[1] * width * p.element_size()
        return indices.unique().numel() * width, values + indices.numel() * indices.element_size()


def row_indices(gradient: Tensor | None) -> Tensor | None:
    """The rows of a sparse gradient, (1, n); None for a dense one."""
    return gradient._indices().clone() if gradient is not None and gradient.is_sparse else None


def gradients_for(loop: Loop) -> Noise:
    """The source of gradients of the kind that the workload's parameters receive."""
    if loop.workload.gradients == "dense":
        return Noise(loop.parameters, loop.settings.seed)
    return TouchedRows(loop)
