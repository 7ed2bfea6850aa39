"""Adafactor. Shazeer & Stern 2018, arXiv:1804.04235, algorithms 4 to 6; momentum as in the authors' own code.

Three forms of it are in use: the paper's (the default here); the same with momentum (`beta1=0.9`); and the one that
HF's Trainer builds, a plain learning rate with `scale_parameter=False, relative_step=False`.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from optimizers.base import SIGNED, UNSIGNED, Common, Moment, Shell, Unpack


def adafactor(
    p: Tensor,
    g: Tensor,
    v: tuple[Tensor, ...],
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
    """v: (row, column) means of g² over the last two dimensions, (…, r) and (…, c), or for a vector (v,) like p."""
    eps1, eps2 = eps
    beta2 = 1 - step**decay_rate
    rho = min(1e-6 * step if warmup_init else lr, step**-0.5) if relative_step else lr
    alpha = rms(p).clamp(min=eps2).mul_(rho) if scale_parameter else rho
    squared = g.square().add_(eps1)
    if len(v) == 2:
        row, column = v
        row.lerp_(squared.mean(-1), 1 - beta2)
        column.lerp_(squared.mean(-2), 1 - beta2)
        update = g.mul(column.rsqrt().unsqueeze(-2)).mul_((row / row.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1))
    else:
        v[0].lerp_(squared, 1 - beta2)
        update = v[0].rsqrt().mul_(g)
    update.mul_(alpha / (rms(update) / clip_threshold).clamp(min=1))
    if m is not None and beta1 is not None:
        update = m.lerp_(update, 1 - beta1)  # the momentum holds steps, learning rate included
    if weight_decay:
        p.mul_(1 - weight_decay * alpha)
    p.sub_(update)


def rms(x: Tensor) -> Tensor:
    """Root mean square over all elements, a 0-dimensional tensor."""
    return x.norm() / max(x.numel(), 1) ** 0.5


class Adafactor(Shell):
    """State: 4(r+c) bytes for an r×c matrix, 4 bytes an element for a vector; 4 (bf16: 2) more with momentum.

    `lr` caps the relative step min(lr, 1/√t); with `relative_step=False` it is the learning rate itself.
    `eps` = (added to g², lower bound of a parameter's scale). `decay_rate`: beta2 = 1 − t^decay_rate.
    """

    rule = staticmethod(adafactor)

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
    ) -> None:
        if warmup_init and not relative_step:
            raise ValueError("Adafactor: warmup_init=True warms up the relative step, so it needs relative_step=True")
        defaults = {
            "lr": lr,
            "eps": tuple(eps),
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
            "relative_step": relative_step,
            "warmup_init": warmup_init,
        }
        super().__init__(params, defaults, common)

    def layout(self, p: Tensor, group: dict[str, Any]) -> dict[str, Moment]:
        if p.dim() >= 2:
            row, column = p.shape[:-1], p.shape[:-2] + p.shape[-1:]
            second = {
                "exp_avg_sq_row": Moment(UNSIGNED, row, exact=True),
                "exp_avg_sq_col": Moment(UNSIGNED, column, exact=True),
            }
        else:
            second = {"exp_avg_sq": Moment(UNSIGNED, p.shape)}
        first = {} if group["beta1"] is None else {"exp_avg": Moment(SIGNED, p.shape)}
        return second | first

    def apply(self, p: Tensor, g: Tensor, moments: list[Tensor], step: int, group: dict[str, Any]) -> None:
        factors = 2 if p.dim() >= 2 else 1
        super().apply(p, g, [tuple(moments[:factors]), *moments[factors:]], step, group)  # type: ignore[list-item]
