"""SparseAdam: Adam on the rows that a sparse gradient touches, as torch.optim.SparseAdam has it ("lazy" Adam).

Untouched rows neither move nor decay, and the bias correction counts the tensor's steps, not a row's own.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from optimeter.optimizers.core.shell import NO_8BIT, SIGNED, UNSIGNED, Basic, Shell, Unpack, constructor, working
from optimeter.optimizers.core.storage import rounded


def sparse_adam(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """p, g, m, v: the k touched rows, (k, …). eps is added before the bias correction, as in torch."""
    beta1, beta2 = betas
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    p.addcdiv_(m, v.sqrt().add_(eps), value=-lr * (1 - beta2**step) ** 0.5 / (1 - beta1**step))


class SparseAdam(Shell):
    """State: two dense moments, 8 bytes a parameter in fp32: sparsity saves time and gradients, not state."""

    moments = {"exp_avg": SIGNED, "exp_avg_sq": UNSIGNED}
    rule = staticmethod(sparse_adam)
    checks = NO_8BIT  # rows do not end where blocks do

    @constructor
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        **common: Unpack[Basic],
    ) -> None: ...

    @torch.no_grad()
    def step_parameter(self, p: Tensor, group: dict[str, Any]) -> None:
        """Update the touched rows of one table: gather them, apply the rule, scatter them back."""
        if not p.grad.is_sparse:  # type: ignore[union-attr]
            raise RuntimeError(
                "SparseAdam needs sparse gradients (nn.Embedding(…, sparse=True)); Adam takes dense ones"
            )
        state = self.start(p, group)
        state["step"] += 1
        rows, g = touched(p.grad.coalesce())  # type: ignore[union-attr]
        g = working(-g if group["maximize"] else g)
        tables = [by_row(x, p.grad.sparse_dim()) for x in (p, *(state[name] for name in self.moments))]  # type: ignore[union-attr]
        parts = [table.index_select(0, rows).to(g.dtype) for table in tables]
        self.apply(p, parts[0], g, dict(zip(self.moments, parts[1:], strict=True)), state["step"], group)
        width = g[0].numel() if len(g) else 0
        position = (rows.unsqueeze(-1) * width + torch.arange(width, device=rows.device)).int().view(g.shape)
        for salt, (table, part) in enumerate(zip(tables, parts, strict=True)):
            key = (group["seed"], state["step"], salt)
            table.index_copy_(0, rows, rounded(part, table.dtype, key, position))


def touched(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers (k,) and values (k, …) of a coalesced sparse gradient, its sparse dimensions counted as one."""
    rows = torch.zeros_like(grad.indices()[0])
    for index, size in zip(grad.indices(), grad.shape, strict=False):
        rows = rows * size + index
    return rows, grad.values()


def by_row(x: Tensor, sparse_dim: int) -> Tensor:
    """A view of `x` in which the first dimension runs over what a sparse gradient indexes."""
    return x if sparse_dim == 1 else x.view(-1, *x.shape[sparse_dim:])
