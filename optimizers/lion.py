"""Lion. Chen et al. 2023, arXiv:2302.06675, algorithm 2."""

from collections.abc import Iterable

import torch
from torch import Tensor

from optimeter.optimizers.core.shell import SIGNED, Common, Shell, Unpack, constructor


def lion(
    p: Tensor, g: Tensor, m: Tensor, *, step: int, lr: float, betas: tuple[float, float], weight_decay: float
) -> None:
    """m: a moment like p. The step has one size, lr, in every coordinate; decay acts on p itself, before it."""
    beta1, beta2 = betas
    p.mul_(1 - lr * weight_decay)
    update = m.lerp(g, 1 - beta1)
    p.sub_(torch.where(update.isnan(), update, update.sign()), alpha=lr)  # torch's sign(NaN) is 0 and would hide it
    m.lerp_(g, 1 - beta2)


class Lion(Shell):
    """State: one moment, 4 bytes a parameter in fp32, 2 in bf16, 1 + 4/block_size in 8 bits."""

    moments = {"exp_avg": SIGNED}
    rule = staticmethod(lion)
    elementwise = True

    @constructor
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None: ...
