"""CAME. Luo et al. 2023, arXiv:2307.02047, algorithm 2."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from optimeter.optimizers.core.factored import Factors, average, factors, over_root, rms
from optimeter.optimizers.core.shell import SIGNED, Common, Moment, Shell, Unpack


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
        "betas": (lambda betas: len(betas) == 3 and all(0 <= beta < 1 for beta in betas), "three, each in [0, 1)"),
        "clip_threshold": (lambda threshold: threshold > 0, "above 0"),
    }

    def __init__(
        self,
        params: Iterable,
        lr: float = 2e-4,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": tuple(eps),
            "clip_threshold": clip_threshold,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults, common)

    def layout(self, p: Tensor, group: dict[str, Any]) -> dict[str, Moment]:
        instability = factors("exp_avg_res", p.shape) if p.dim() >= 2 else {}
        return {"exp_avg": Moment(SIGNED, p.shape)} | factors("exp_avg_sq", p.shape) | instability

    def apply(self, p: Tensor, g: Tensor, moments: list[Tensor], step: int, group: dict[str, Any]) -> None:
        m, *rest = moments
        statistics = [tuple(rest)] if p.dim() < 2 else [tuple(rest[:2]), tuple(rest[2:])]
        super().apply(p, g, [m, *statistics], step, group)  # type: ignore[list-item]
