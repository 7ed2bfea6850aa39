"""Shampoo. Gupta, Koren & Singer 2018, arXiv:1802.09568, algorithms 1 and 2; blocked: Anil et al. 2020, 2002.09018.

Two forms of it. The scalable one, the default here: matrices cut into blocks, decaying statistics, the inverse roots
renewed only now and then, the size of each block's step borrowed ("grafted") from Adam. And the original one: sums
instead of averages, no momentum, whole dimensions, `betas=(0, 1), grafting=None, max_preconditioner_dim=None,
precondition_every=1, start_step=1, relative_eps=False`.
"""

from collections.abc import Iterable
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optimeter.optimizers.core.arguments import above, whole
from optimeter.optimizers.core.shell import SIGNED, UNSIGNED, Common, Moment, Shell, Unpack, constructor

TINY = 1e-30  # keeps the root of nothing, and a division by its norm, finite


class Area(NamedTuple):
    """A part of a tensor that is cut into b equal blocks of `size` (d1, …, dk), and their preconditioners.

    statistics, roots: one (b, di, di) for each dimension; none where the tensor takes the grafted step alone.
    """

    where: tuple[slice, ...]
    size: tuple[int, ...]
    statistics: list[Tensor]
    roots: list[Tensor]


def shampoo(
    p: Tensor,
    g: Tensor,
    m: Tensor | None,
    v: Tensor | None,
    areas: list[Area],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    matrix_eps: float,
    relative_eps: bool,
    weight_decay: float,
    precondition_every: int,
    start_step: int,
) -> None:
    """m: moment like p; without it the gradient itself is preconditioned. v: Adam's; without it nothing is grafted.

    beta2 = 1 sums instead of averaging. Decay is decoupled.
    """
    beta1, beta2 = betas
    weight, correction = (1 - beta2, 1 - beta2**step) if beta2 < 1 else (1.0, 1.0)
    direction = g if m is None else m.lerp_(g, 1 - beta1) / (1 - beta1**step)
    update = direction.clone()
    if v is not None:
        v.mul_(beta2).addcmul_(g, g, value=weight)
        update.div_((v / correction).sqrt_().add_(eps))
    for where, size, statistics, roots in areas:
        gradients = in_blocks(g[where], size)
        for i, (h, root) in enumerate(zip(statistics, roots, strict=True)):
            unfolded = unfold(gradients, i)
            h.baddbmm_(unfolded, unfolded.mT, beta=beta2, alpha=weight)
            if step >= start_step and (step - start_step) % precondition_every == 0:
                inverse_root(h / correction, 2 * len(size), matrix_eps, relative_eps, out=root)
        if step >= start_step:
            blocks = preconditioned(in_blocks(direction[where], size), roots)
            if v is not None:
                blocks.mul_(norms(in_blocks(update[where], size)) / norms(blocks).clamp_(min=TINY))
            update[where] = joined(blocks, update[where].shape)
    p.mul_(1 - lr * weight_decay).sub_(update, alpha=lr)


def preconditioned(x: Tensor, roots: list[Tensor]) -> Tensor:
    """x ×₁ roots₁ ×₂ … ×ₖ rootsₖ for each of the b blocks of `x`, (b, d1, …, dk); roots: (b, di, di)."""
    for i, root in enumerate(roots):
        moved = x.movedim(i + 1, 1)
        x = (root @ unfold(x, i)).view(moved.shape).movedim(1, i + 1)
    return x.contiguous()


def unfold(x: Tensor, i: int) -> Tensor:
    """Blocks (b, d1, …, dk) as matrices (b, di, all others)."""
    moved = x.movedim(i + 1, 1)
    return moved.reshape(*moved.shape[:2], -1)


def inverse_root(h: Tensor, order: int, ridge: float, relative: bool, out: Tensor) -> None:
    """(h + ridge·I)^(−1/order), a relative ridge in units of the largest eigenvalue, into `out`, all (b, d, d).

    By eigendecomposition in fp64: in fp32 the small eigenvalues, which count most, would be noise. Where `h` is not
    finite, `out` stays: `eigh` would raise.
    """
    finite = h.isfinite().all(-1).all(-1)[:, None, None]
    identity = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
    values, vectors = torch.linalg.eigh(torch.where(finite, h, identity).double())
    values.clamp_(min=0)
    values = (values + ridge * (values[:, -1:] if relative else 1)).clamp_(min=TINY)
    root = (vectors * values.pow(-1 / order).unsqueeze(1)) @ vectors.mT
    out.copy_(torch.where(finite, root.to(out.dtype), out))


def in_blocks(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """`x`, whose dimensions are multiples of `size`, as its blocks, (b, d1, …, dk)."""
    if x.shape == size:
        return x.unsqueeze(0)
    counts = [n // d for n, d in zip(x.shape, size, strict=True)]
    cut = x.reshape([n for pair in zip(counts, size, strict=True) for n in pair])
    return cut.permute(*range(0, 2 * len(size), 2), *range(1, 2 * len(size), 2)).reshape(-1, *size)


def joined(blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What `in_blocks` cut, in its shape."""
    size, order = blocks.shape[1:], len(shape)
    counts = [n // d for n, d in zip(shape, size, strict=True)]
    both = [i + part * order for i in range(order) for part in (0, 1)]
    return blocks.reshape(*counts, *size).permute(both).reshape(shape)


def norms(blocks: Tensor) -> Tensor:
    """The Frobenius norm of each block, (b, 1, …, 1)."""
    return torch.linalg.vector_norm(blocks, dim=tuple(range(1, blocks.dim())), keepdim=True)


def cuts(shape: Iterable[int], most: int | None) -> list[tuple[tuple[slice, ...], tuple[int, ...], int]]:
    """(where, size of a block, how many) of each area: whole blocks first, then what is left over at the edges."""
    sides = []
    for n in shape:
        d = min(n, most or n)
        end = n // d * d
        sides.append([(slice(0, end), d, n // d), *([(slice(end, n), n - end, 1)] if end < n else [])])
    return [
        (tuple(s for s, _, _ in part), tuple(d for _, d, _ in part), prod(b for _, _, b in part))
        for part in product(*sides)
    ]


class Shampoo(Shell):
    """State: 8·Σ dᵢ² bytes a block of d₁×…×d_k: statistics and roots, always in full precision; 4 a parameter for the
    momentum and 4 for Adam's second moment (storage fp32), where beta1 > 0 and with grafting.

    With grafting, tensors of fewer than two dimensions take Adam's step and have no preconditioner; without, a vector
    has a full one and a number is a vector of one. `start_step`: before it the grafted step is taken. A renewal of the
    roots may wait for the device; no other step does. After a NaN in a gradient the roots stay as they were.
    """

    rule = staticmethod(shampoo)
    checks = {
        "betas": (lambda betas: 0 <= betas[0] < 1 and 0 <= betas[1] <= 1, "in [0, 1) and [0, 1]"),
        "matrix_eps": above(0),
        "grafting": (lambda grafting: grafting in ("adam", None), "adam or None"),
        "max_preconditioner_dim": (lambda most: most is None or whole(1)[0](most), f"None or {whole(1)[1]}"),
        "precondition_every": whole(1),
        "start_step": whole(1),
    }

    @constructor
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        matrix_eps: float = 1e-6,
        relative_eps: bool = True,
        weight_decay: float = 0.0,
        grafting: str | None = "adam",
        max_preconditioner_dim: int | None = 1024,
        precondition_every: int = 10,
        start_step: int = 10,
        **common: Unpack[Common],
    ) -> None: ...

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        settings = self.defaults | param_group
        if settings["grafting"] is None and settings["start_step"] > 1:
            self.refuse("start_step > 1 needs a step to take until then: grafting='adam', or start_step=1")
        super().add_param_group(param_group)

    def layout(self, p: Tensor, group: dict[str, Any]) -> dict[str, Moment]:
        first = {"exp_avg": Moment(SIGNED, p.shape)} if group["betas"][0] > 0 else {}
        second = {"exp_avg_sq": Moment(UNSIGNED, p.shape)} if group["grafting"] else {}
        many = sum(b * d * d for _, size, b in self.areas(p, group) for d in size)
        packed = Moment(SIGNED, torch.Size([many]), exact=True)  # all of a tensor, one after the other
        return first | second | ({"statistics": packed, "roots": packed} if many else {})

    def areas(self, p: Tensor, group: dict[str, Any]) -> list[tuple[tuple[slice, ...], tuple[int, ...], int]]:
        """How `p` is cut; not at all where it keeps no preconditioner."""
        if not p.numel() or (group["grafting"] and p.dim() < 2):
            return []
        return cuts(p.shape or (1,), group["max_preconditioner_dim"])

    def apply(
        self, p: Tensor, work: Tensor, g: Tensor, moments: dict[str, Tensor], step: int, group: dict[str, Any]
    ) -> None:
        shape = p.shape or (1,)
        m, v = (moments[name].view(shape) if name in moments else None for name in ("exp_avg", "exp_avg_sq"))
        areas, begin = [], 0
        for where, size, b in self.areas(p, group):
            area = Area(where, size, [], [])
            for d in size:
                packed = slice(begin, begin + b * d * d)
                area.statistics.append(moments["statistics"][packed].view(b, d, d))
                area.roots.append(moments["roots"][packed].view(b, d, d))
                begin = packed.stop
            areas.append(area)
        self.rule(work.view(shape), g.view(shape), m, v, areas, step=step, **self.settings_of(group))
