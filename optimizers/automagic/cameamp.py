"""The rule of the Automagic_CameAMP family (document 001): nine published techniques in a row, no two of them its own.

AGR (arXiv:2407.16944), CAME's confidence (arXiv:2307.02047) without factoring, torque-aware momentum
(arXiv:2412.18790), a decaying beta1 (arXiv:2404.07946), Grams (arXiv:2412.17107), ⊥Grad (arXiv:2501.04697) and
AdaDecay (arXiv:1907.08931); the rows' scaling (ALLoRA, arXiv:2410.09692) and the mask of learning rates come in as
`lr`. It does what the published 32-bit class does, which trains; no moment but the slow ones is corrected for its
bias, so the first steps are up to 30 times `lr`. A single element is left out of AGR and ⊥Grad, which would stop it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SLOW_DECAY, ALIGNMENT_DECAY = 0.9, 0.9  # of the slow momenta, a tick; of the torque, a step
LEAST_BETA1 = 0.4
TINY = 1e-30


class Magnitudes(NamedTuple):
    """Of |g| over all elements of a group, 0-dimensional."""

    total: Tensor
    mean: Tensor
    std: Tensor


def cameamp(
    p: Tensor,
    g: Tensor,
    lr: Tensor,
    m: Tensor,
    r: Tensor,
    v: Tensor | None,
    s: Tensor | None,
    slow: dict[int, Tensor],
    group: Magnitudes,
    *,
    step: int,
    betas: tuple[float, float, float],
    eps: tuple[float, float, float],
    clip_threshold: float,
    beta1_decay: float,
    weight_decay: float,
    warmup_steps: int,
) -> None:
    """lr: of each element; m, r, v, s: momentum, residual, second moment (with `came`), torque (warming up), like p.

    slow: momenta by the number of steps between two of their ticks. The first half of the warm-up is `early`.
    """
    (beta1, beta2, beta3), (eps1, eps2, _), early = betas, eps, step < warmup_steps / 2
    decay = beta1_decay**step
    # 1. AGR: damp each element by its share of the group's gradient.
    g_mean = g.abs().mean() if early else None
    g = g.abs().div_(group.total).neg_().add_(1).mul_(g)
    # 2. Normalise by the second moment and clip the root mean square; or clip each element, as ADOPT does.
    if v is not None:
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2).add_((1 - beta2) * eps1)
        h = v.rsqrt().mul_(g)
        h.div_((h.norm() / ((h.numel() ** 0.5 + 1e-10) * clip_threshold)).clamp_(min=1))
    else:
        h = g.clamp(-(step**0.25), step**0.25)
    # 3. Several time scales (with `context`): the mean of the slow momenta, the faster ones weighing more.
    x = time_scales(h, slow, step) if slow else h
    # 4. Momentum; early, each element is damped where it and the momentum, each of a column's length, disagree.
    if early and s is not None:
        s.mul_(ALIGNMENT_DECAY).addcmul_(unit(m), unit(x), value=1 - ALIGNMENT_DECAY)
        m.mul_(0.9).addcmul_(s.add(1 + 2 * eps1), x, value=0.5)
        expected = m
    else:
        m.lerp_(x, 1 - max(beta1 * decay, LEAST_BETA1))
        expected = m.lerp(x, 1 - beta1)
    # 5. Confidence: step less where the normalised gradient is far from what was expected.
    r.mul_(beta3).add_(h.sub_(expected).square_().add_(eps2), alpha=1 - beta3)
    u = r.rsqrt().mul_(m)
    # 6. Grams: at first the signs are the gradient's, later the momentum's.
    u = u.abs().mul_(g.sign()).mul_(decay).add_(u, alpha=1 - decay)
    # 7. ⊥Grad: early, take out what only scales p.
    if early and p.numel() > 1:
        u = beside(u, p)
    # 8. Weight decay, early alone: more where this tensor's gradient is large among the group's.
    if early and weight_decay and g_mean is not None:
        theta = torch.sigmoid((g_mean - group.mean).mul_(4).div_(group.std)).mul_(2)
        p.addcmul_(p, lr * (theta * weight_decay), value=-1)
    # 9. The step itself.
    p.addcmul_(lr, u, value=-1)


def time_scales(h: Tensor, slow: dict[int, Tensor], step: int) -> Tensor:
    """The weighted mean of momenta that take `h` in every k-th step, each corrected for its bias, with weight 1/k."""
    total, weights = torch.zeros_like(h), 0.0
    for k, moment in slow.items():
        if step % k == 0:
            moment.lerp_(h, 1 - SLOW_DECAY)
        if step >= k:
            total.add_(moment, alpha=1 / (k * (1 - SLOW_DECAY ** (step // k))))
            weights += 1 / k
    return total.div_(weights) if weights else h


def unit(x: Tensor) -> Tensor:
    """`x` with columns (a vector as a whole) of length 1."""
    return x / x.norm(dim=0, keepdim=True).clamp_(min=1e-12) if x.dim() else x.sign()


def beside(u: Tensor, p: Tensor) -> Tensor:
    """The part of `u` orthogonal to `p`, at the length of `u`; `u` itself where nothing but rounding is left of it."""
    flat, along = u.reshape(-1), p.reshape(-1)
    rest = flat - flat.dot(along) / (along.dot(along) + TINY) * along
    before, after = flat.norm(), rest.norm()
    return torch.where(after > 1e-4 * before, rest * (before / (after + TINY)), flat).view(u.shape)


def magnitudes(gradients: list[Tensor]) -> Magnitudes:
    """Of a group's gradients, from their norms; one that is not finite is left out and spoils its own tensor alone."""
    device = gradients[0].device
    dtype = torch.float64 if any(g.dtype == torch.float64 for g in gradients) else torch.float32
    norms = [
        torch.stack([n.to(device) for n in torch._foreach_norm(gradients, order, dtype=dtype)]) for order in (1, 2)
    ]
    count = max(sum(g.numel() for g in gradients), 1)
    total, squares = (x.where(x.isfinite(), 0.0).sum() for x in (norms[0], norms[1].square()))
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    share_of = total.clamp(min=TINY) if count > 1 else torch.full_like(total, torch.inf)
    return Magnitudes(share_of, mean, std.clamp(min=TINY))
