"""Adam. Kingma & Ba 2015, arXiv:1412.6980, algorithm 1; amsgrad from Reddi et al. 2018, arXiv:1904.09237."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from optimeter.optimizers.core.shell import SIGNED, UNSIGNED, Common, Moment, Shell, Unpack, constructor


def adam(
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
    """m, v: moments like p; v_max: the largest v so far, with amsgrad. Decay is of the L2 kind, inside the gradient."""
    beta1, beta2 = betas
    if weight_decay:
        g = g.add(p, alpha=weight_decay)
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    if v_max is not None:
        v = torch.maximum(v_max, v, out=v_max)
    denominator = v.sqrt().mul_((1 - beta2**step) ** -0.5).add_(eps)
    p.addcdiv_(m, denominator, value=-lr / (1 - beta1**step))


class Adam(Shell):
    """State: two moments, 8 bytes a parameter in fp32, 4 in bf16; one moment more with amsgrad."""

    moments = {"exp_avg": SIGNED, "exp_avg_sq": UNSIGNED}
    rule = staticmethod(adam)
    elementwise = True

    @constructor
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        **common: Unpack[Common],
    ) -> None: ...

    def layout(self, p: Tensor, group: dict[str, Any]) -> dict[str, Moment]:
        maximum = {"max_exp_avg_sq": Moment(UNSIGNED, p.shape)} if group["amsgrad"] else {}
        return super().layout(p, group) | maximum
