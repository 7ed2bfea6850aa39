"""AdamW: Adam with decoupled decay. Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2."""

from collections.abc import Iterable

import torch
from torch import Tensor

from optimeter.optimizers.adam import Adam
from optimeter.optimizers.core.shell import Common, Unpack, constructor


def adamw(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    v_max: Tensor | None = None,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """m, v: moments like p; v_max: the running maximum of v, with amsgrad. Decay acts on p itself, before the step."""
    beta1, beta2 = betas
    p.mul_(1 - lr * weight_decay)
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    if v_max is not None:
        v = torch.maximum(v_max, v, out=v_max)
    denominator = v.sqrt().mul_((1 - beta2**step) ** -0.5).add_(eps)
    p.addcdiv_(m, denominator, value=-lr / (1 - beta1**step))


class AdamW(Adam):
    """State: as Adam's."""

    rule = staticmethod(adamw)

    @constructor
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **common: Unpack[Common],
    ) -> None: ...
