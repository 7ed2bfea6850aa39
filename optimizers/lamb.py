"""LAMB: Adam whose step in each tensor is as long as the tensor. You et al. 2020, arXiv:1904.00962, algorithm 2.

Others' variants of it are arguments; with the defaults it is the paper's.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from optimeter.optimizers.core.shell import SIGNED, UNSIGNED, Common, Shell, Unpack, constructor, working


def lamb(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    phi: tuple[float | None, float | None],
    bias_correction: bool,
    grad_averaging: bool,
    adam_w_mode: bool,
    always_adapt: bool,
    trust_clip: bool,
) -> None:
    """m, v: moments like p. Norms are those of the whole tensor."""
    beta1, beta2 = betas
    if weight_decay and not adam_w_mode:
        g = g.add(p, alpha=weight_decay)
    m.mul_(beta1).add_(g, alpha=1 - beta1 if grad_averaging else 1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    c1, c2 = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1, 1)
    r = m / v.sqrt().mul_(c2**-0.5).add_(eps).mul_(c1)
    if weight_decay and adam_w_mode:
        r.add_(p, alpha=weight_decay)
    if weight_decay or always_adapt:
        r.mul_(trust_ratio(p, r, phi, trust_clip))
    p.sub_(r, alpha=lr)


def trust_ratio(p: Tensor, update: Tensor, phi: tuple[float | None, float | None], trust_clip: bool) -> Tensor:
    """φ(‖p‖) / ‖update‖, φ keeping a norm inside its bounds; 1 where either is 0. 0-dimensional."""
    length, norm = p.norm(), update.norm()
    if any(bound is not None for bound in phi):
        length = length.clamp(*phi)
    ratio = torch.where((length == 0) | (norm == 0), 1, length / norm)
    return ratio.clamp(max=1) if trust_clip else ratio


class LAMB(Shell):
    """State: as Adam's, 8 bytes a parameter in fp32.

    `phi`: lower and upper bound of a tensor's norm in the ratio, None for none; (None, 10) is a common choice.
    `bias_correction=False`: as the paper's third version and TensorFlow have it. `grad_averaging=False`: the momentum
    is a decaying sum. `adam_w_mode=False`: decay inside the gradient. `always_adapt=False`: no ratio where
    weight_decay is 0. `trust_clip`: ratios of at most 1 (LAMBC). `max_grad_norm`: first scale the gradient of all
    parameters of all groups down to this norm, as apex and timm do by default; tensors then depend on each other.
    """

    moments = {"exp_avg": SIGNED, "exp_avg_sq": UNSIGNED}
    rule = staticmethod(lamb)
    checks = {
        "phi": (lambda phi: len(phi) == 2, "two bounds, (lower, upper), either of them None"),
        "max_grad_norm": (lambda norm: norm is None or norm > 0, "None or above 0"),
    }
    gradient_norm: Tensor | None = None  # of this step, while it lasts

    @constructor
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        phi: tuple[float | None, float | None] = (None, None),
        bias_correction: bool = True,
        grad_averaging: bool = True,
        adam_w_mode: bool = True,
        always_adapt: bool = True,
        trust_clip: bool = False,
        max_grad_norm: float | None = None,
        **common: Unpack[Common],
    ) -> None: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what the closure returned."""
        with torch.enable_grad():
            loss = closure() if closure else None
        clips = any(group["max_grad_norm"] is not None for group in self.param_groups)
        gradients = (p.grad for group in self.param_groups for p in group["params"])
        self.gradient_norm = total_norm(gradients) if clips else None
        super().step()
        self.gradient_norm = None
        return loss

    def apply(
        self, p: Tensor, work: Tensor, g: Tensor, moments: dict[str, Tensor], step: int, group: dict[str, Any]
    ) -> None:
        if self.gradient_norm is not None and group["max_grad_norm"] is not None:
            g = g / (self.gradient_norm.to(g) / group["max_grad_norm"]).clamp(min=1)
        super().apply(p, work, g, moments, step, group)


def total_norm(gradients: Iterable[Tensor | None]) -> Tensor | None:
    """The norm of all of them taken together, in the rules' precision, 0-dimensional; None where there are none."""
    norms = [working(g).norm() for g in gradients if g is not None]
    return torch.stack([norm.to(norms[0]) for norm in norms]).norm() if norms else None
