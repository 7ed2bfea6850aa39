"""A second moment kept as row and column means. Shazeer & Stern 2018, arXiv:1804.04235, section 3.

The last two dimensions of a tensor are its rows and columns, those before them count matrices; (…, r, c) elements
become (…, r) + (…, c) means, whose outer product over their own mean approximates the moment. A vector keeps all of it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from optimeter.optimizers.core.shell import UNSIGNED, Moment

Factors = tuple[Tensor, ...]  # (row means, column means), or (the moment itself,) of a vector


def factors(name: str, shape: torch.Size) -> dict[str, Moment]:
    """What a parameter of this shape keeps of its second moment `name`."""
    if len(shape) < 2:
        return {name: Moment(UNSIGNED, shape)}
    row, column = shape[:-1], shape[:-2] + shape[-1:]
    return {f"{name}_row": Moment(UNSIGNED, row, exact=True), f"{name}_col": Moment(UNSIGNED, column, exact=True)}


def factors_of(name: str, moments: Mapping[str, Tensor]) -> Factors:
    """The factors of the second moment `name` among a parameter's moments; empty where it keeps none."""
    keys = (name, f"{name}_row", f"{name}_col")
    return tuple(moments[key] for key in keys if key in moments)


def average(v: Factors, squared: Tensor, beta: float) -> None:
    """v ← beta v + (1 − beta) squared."""
    means = (squared.mean(-1), squared.mean(-2)) if len(v) == 2 else (squared,)
    for old, new in zip(v, means, strict=True):
        old.lerp_(new, 1 - beta)


def over_root(x: Tensor, v: Factors) -> Tensor:
    """x / √v."""
    if len(v) == 1:
        return v[0].rsqrt().mul_(x)
    row, column = v
    return x.mul(column.rsqrt().unsqueeze(-2)).mul_((row / row.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1))


def rms(x: Tensor) -> Tensor:
    """Root mean square over all elements, a 0-dimensional tensor."""
    return x.norm() / max(x.numel(), 1) ** 0.5
