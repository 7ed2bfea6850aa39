"""Adafactor. Shazeer & Stern 2018, arXiv:1804.04235, algorithms 4 to 6; momentum as in the authors' own code.

Three forms of it are in use: the paper's (the default here); the same with momentum (`beta1=0.9`); and the one that
HF's Trainer builds, a plain learning rate with `scale_parameter=False, relative_step=False`.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from optimeter.optimizers.core.factored import Factors, average, factors, factors_of, over_root, rms
from optimeter.optimizers.core.shell import SIGNED, Common, Moment, Shell, Unpack, constructor


def adafactor(
    p: Tensor,
    g: Tensor,
    v: Factors,
    m: Tensor | None = None,
    *,
    step: int,
    lr: float,
    eps: tuple[float, float],
    clip_threshold: float,
    decay_rate: float,
    beta1: float | None,
    weight_decay: float,
    scale_parameter: bool,
    relative_step: bool,
    warmup_init: bool,
) -> None:
    """v: row and column means of g² (see `optimizers/core/factored.py`), or for a vector (v,) like p; m: like p."""
    eps1, eps2 = eps
    beta2 = 1 - step**decay_rate
    rho = min(1e-6 * step if warmup_init else lr, step**-0.5) if relative_step else lr
    alpha = rms(p).clamp(min=eps2).mul_(rho) if scale_parameter else rho
    average(v, g.square().add_(eps1), beta2)
    update = over_root(g, v)
    update.mul_(alpha / (rms(update) / clip_threshold).clamp(min=1))
    if m is not None and beta1 is not None:
        update = m.lerp_(update, 1 - beta1)  # the momentum holds steps, learning rate included
    if weight_decay:
        p.mul_(1 - weight_decay * alpha)
    p.sub_(update)


class Adafactor(Shell):
    """State: 4(r+c) bytes for an r×c matrix, 4 bytes an element for a vector; 4 (bf16: 2) more with momentum.

    `lr` caps the relative step min(lr, 1/√t); with `relative_step=False` it is the learning rate itself.
    `eps` = (added to g², lower bound of a parameter's scale). `decay_rate`: beta2 = 1 − t^decay_rate.
    """

    rule = staticmethod(adafactor)

    @constructor
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-2,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        **common: Unpack[Common],
    ) -> None: ...

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        settings = self.defaults | param_group
        if settings["warmup_init"] and not settings["relative_step"]:
            self.refuse("warmup_init=True warms up the relative step, so it needs relative_step=True")
        super().add_param_group(param_group)

    def layout(self, p: Tensor, group: dict[str, Any]) -> dict[str, Moment]:
        first = {} if group["beta1"] is None else {"exp_avg": Moment(SIGNED, p.shape)}
        return factors("exp_avg_sq", p.shape) | first

    def apply(
        self, p: Tensor, work: Tensor, g: Tensor, moments: dict[str, Tensor], step: int, group: dict[str, Any]
    ) -> None:
        v, m = factors_of("exp_avg_sq", moments), moments.get("exp_avg")
        self.rule(work, g, v, m, step=step, **self.settings_of(group))
