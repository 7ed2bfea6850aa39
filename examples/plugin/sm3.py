"""SM3. Anil, Gupta, Koren & Singer 2019, arXiv:1901.11150, algorithm SM3-II: a second moment in rows and columns."""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def sm3(p: Tensor, g: Tensor, bounds: Sequence[Tensor], *, lr: float, eps: float) -> None:
    """One step in place. bounds: for each dimension of p a tensor of its length, shaped to broadcast over p."""
    v = reduce(torch.minimum, bounds) + g.square()
    for dimension, bound in enumerate(bounds):
        others = [other for other in range(p.dim()) if other != dimension]
        bound.copy_(v.amax(others, keepdim=True) if others else v)
    p.addcdiv_(g, v.sqrt_().add_(eps), value=-lr)


class SM3(Optimizer):
    """State: 4(r+c) bytes for an r×c matrix, 4 bytes an element for a vector."""

    def __init__(self, params: Iterable, lr: float = 0.1, eps: float = 1e-30) -> None:
        if lr < 0:
            raise ValueError(f"lr must be a number of at least 0, not {lr}")
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    sm3(p, p.grad, self.bounds(p), lr=group["lr"], eps=group["eps"])
        return loss

    def bounds(self, p: Tensor) -> list[Tensor]:
        """The state of a parameter, zeros before its first step."""
        state = self.state[p]
        for dimension in range(max(p.dim(), 1)):
            shape = [size if d == dimension else 1 for d, size in enumerate(p.shape)]
            state.setdefault(f"bound_{dimension}", p.new_zeros(shape))
        return list(state.values())
