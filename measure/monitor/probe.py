"""Norms and counts of gradients, weights and updates, as 0-dimensional tensors: nothing here reads a value back.

Scratch memory is bounded, so that looking does not change the peak that is being measured.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from optimeter.measure.devices import on_host

CHUNK = 1 << 22  # elements looked at at once when counting non-finite values
GLIMPSE = 1 << 14  # elements of a tensor whose change is measured; larger tensors are sampled evenly


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients that are there; of a sparse one the summed values of its touched rows."""
    grads = (p.grad for p in parameters if p.grad is not None)
    return [g.coalesce().values() if g.layout == torch.sparse_coo else g for g in grads]


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all elements, fp64: of each tensor in fp32 (fp64 for fp64), and over tensors in fp64."""
    double = [t for t in tensors if t.dtype == torch.float64]
    single = [t for t in tensors if t.dtype != torch.float64]
    norms: list[Tensor] = []
    for group, dtype in ((double, torch.float64), (single, torch.float32)):
        norms += torch._foreach_norm(group, 2, dtype=dtype) if group else []
    return torch.linalg.vector_norm(torch.stack([n.to(norms[0].device, torch.float64) for n in norms]))


def total(tensors: Sequence[Tensor]) -> Tensor:
    """Sum over all elements."""
    sums = [t.sum(dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    return torch.stack([s.to(sums[0].device, torch.float64) for s in sums]).sum()


def nonfinite(tensors: Sequence[Tensor]) -> Tensor:
    """How many elements are infinite or NaN."""
    chunks = (chunk for t in tensors for chunk in t.reshape(-1).split(CHUNK))
    counts = [(~chunk.isfinite()).sum() for chunk in chunks]
    return torch.stack([c.to(counts[0].device) for c in counts]).sum()


def glimpse(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of evenly spaced elements, at most GLIMPSE of each tensor."""
    return [t.detach().reshape(-1)[:: stride_of(t)].clone() for t in tensors]


def change(tensors: Sequence[Tensor], before: Sequence[Tensor]) -> dict[str, Tensor]:
    """Euclidean norm of the change since `glimpse`, and how many elements changed at all.

    Of a tensor over GLIMPSE elements both are estimated from the sample.
    """
    squares, counts = [], []
    for t, old in zip(tensors, before, strict=True):
        precision = torch.promote_types(t.dtype, torch.float32)
        moved = t.detach().reshape(-1)[:: stride_of(t)].to(precision) - old.to(precision)
        scale = t.numel() / max(moved.numel(), 1)
        squares.append(moved.square().sum() * scale)
        counts.append(moved.count_nonzero() * scale)
    norm, count = (torch.stack([s.to(part[0].device, torch.float64) for s in part]).sum() for part in (squares, counts))
    return {"update_norm": norm.sqrt(), "updated": count}


def rows_at_rest(p: Tensor) -> Tensor:
    """Which of the elements that a glimpse of `p` sees lie in rows without a gradient; (k,), bool.

    p: with a sparse gradient.
    """
    touched = torch.zeros(len(p), dtype=torch.bool, device=p.device)
    touched.index_fill_(0, p.grad._indices()[0], True)  # type: ignore[union-attr] # touched[…] = True would wait
    width = max(p.numel() // max(len(p), 1), 1)
    return ~touched[torch.arange(0, p.numel(), stride_of(p), device=p.device) // width]


def strayed(t: Tensor, before: Tensor, resting: Tensor) -> Tensor:
    """How many elements of `t` changed since its glimpse though they were resting; estimated as in `change`."""
    (now,) = glimpse([t])
    return ((now != before) & resting).sum(dtype=torch.float64) * (t.numel() / max(len(before), 1))


def stride_of(t: Tensor) -> int:
    """Odd, so that a sample of a matrix does not stay in a few of its columns."""
    return 1 if t.numel() <= GLIMPSE else (t.numel() // GLIMPSE) | 1


def gradient_statistics(gradients: Sequence[Tensor]) -> dict[str, Tensor]:
    """Norm and sum of all elements, and how many are not finite (left out where the norm already says: none)."""
    found = {"gradient_norm": norm(gradients), "gradient_sum": total(gradients)}
    if not on_host(gradients[0]) or not found["gradient_norm"].isfinite():  # looking costs nothing on a CPU
        found["gradient_nonfinite"] = nonfinite(gradients)
    return found


def fingerprint(t: Tensor) -> int:
    """A 64-bit hash of the tensor's bits: equal before and after only if, in all likelihood, nothing changed.

    Each element's bits are weighted by a hash of its position, so that equal changes do not cancel.
    """
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    sums = []
    for number, chunk in enumerate(t.detach().reshape(-1).split(CHUNK)):
        weight = torch.arange(1, chunk.numel() + 1, device=t.device) * -0x61C8864680B583EB + number
        weight = (weight ^ (weight >> 29)) * 0x3F58476D1CE4E5B9
        sums.append((chunk.view(integers).long() * weight).sum())
    return sum(int(s) for s in sums) & 0xFFFFFFFFFFFFFFFF


def fingerprints(model: nn.Module) -> dict[str, int]:
    """A hash of the bits of each parameter, by name, to tell exactly which have moved."""
    return {name: fingerprint(p) for name, p in model.named_parameters() if p.numel()}
