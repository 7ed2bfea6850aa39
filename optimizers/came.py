"""CAME. Luo et al. 2023, arXiv:2307.02047, algorithm 2."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from optimeter.optimizers.core.arguments import above, is_fraction
from optimeter.optimizers.core.factored import Factors, average, factors, factors_of, over_root, rms
from optimeter.optimizers.core.shell import SIGNED, Common, Moment, Shell, Unpack, constructor


def came(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Factors,
    s: Factors | None = None,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float, float],
    eps: tuple[float, float],
    clip_threshold: float,
    weight_decay: float,
) -> None:
    """m: momentum like p; v, s: row and column means of g² and of the instability (u − m)²; a vector has no s.

    No bias correction: the first u is about (1 − beta2)^−½ in each element, and clipping is what bounds it.
    """
    (beta1, beta2, beta3), (eps1, eps2) = betas, eps
    average(v, g.square().add_(eps1), beta2)
    u = over_root(g, v)
    u.div_((rms(u) / clip_threshold).clamp(min=1))
    m.lerp_(u, 1 - beta1)
    update = m
    if s is not None:  # confidence: where updates disagree with their mean, steps are short
        average(s, (u - m).square_().add_(eps2), beta3)
        update = over_root(m, s)
    p.mul_(1 - lr * weight_decay)
    p.sub_(update, alpha=lr)


class CAME(Shell):
    """State: 4 + 8(r+c)/(rc) bytes a parameter for an r×c matrix, 8 for a vector; the momentum halves in bf16.

    `betas` = (momentum, second moment, instability); `eps` = (added to g², added to the instability).
    `clip_threshold`: largest root mean square of an update before momentum.
    """

    rule = staticmethod(came)
    checks = {
        "betas": (lambda betas: len(betas) == 3 and all(map(is_fraction, betas)), "three, each in [0, 1)"),
        "clip_threshold": above(0),
    }

    @constructor
    def __init__(
        self,
        params: Iterable,
        lr: float = 2e-4,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None: ...

    def layout(self, p: Tensor, group: dict[str, Any]) -> dict[str, Moment]:
        instability = factors("exp_avg_res", p.shape) if p.dim() >= 2 else {}
        return {"exp_avg": Moment(SIGNED, p.shape)} | factors("exp_avg_sq", p.shape) | instability

    def apply(
        self, p: Tensor, work: Tensor, g: Tensor, moments: dict[str, Tensor], step: int, group: dict[str, Any]
    ) -> None:
        v, s = factors_of("exp_avg_sq", moments), factors_of("exp_avg_res", moments)
        self.rule(work, g, moments["exp_avg"], v, s or None, step=step, **self.settings_of(group))
