"""Nine techniques that change an Adam step, each as its paper has it: pure functions of whole tensors.

A gradient goes through them in this order: `orthogonal_gradient`, `regularized_gradient`, `torque`, then `adopt` or
Adam's moments, `grams` or `cautious`, `allora`, and after the step `decay_share` and `selective_projection`.
Nothing is read back to the host; sums of zeros divide nothing by zero; a NaN comes out as a NaN.
"""

import torch
from torch import Tensor


def orthogonal_gradient(g: Tensor, w: Tensor) -> Tensor:
    """⊥Grad, Prieto et al. 2025, arXiv:2501.04697: g without its part along the weights w, as long as g was.

    Nothing but rounding is left of a gradient that lies along w: it becomes 0. One element has nothing orthogonal to
    it and keeps its gradient.
    """
    if g.numel() < 2:
        return g
    orthogonal = g - w * (dot(w, g) / (dot(w, w) + 1e-30))
    length, left = g.norm(), orthogonal.norm()
    noise = 4 * torch.finfo(g.dtype).eps * length
    return orthogonal.mul_(torch.where(left <= noise, 0.0, length / (left + 1e-30)))


def regularized_gradient(g: Tensor) -> Tensor:
    """AGR, Jiang et al. 2024, arXiv:2407.16944: (1 − α) g, α being each element's share of Σ|g|.

    The share of a single element is 1, which would hold it still for ever: it keeps its gradient.
    """
    if g.numel() < 2:
        return g
    share = g.abs()
    share.div_(above_zero(share.sum()))
    return torch.addcmul(g, g, share, value=-1)


def torque(m: Tensor, g: Tensor, alignment: Tensor, gamma: float) -> Tensor:
    """TAM, Malviya et al. 2024, arXiv:2412.18790: how much of g may enter the momentum m, from 0 (opposed) to 1.

    alignment ŝ, 0-dimensional, is the mean of cos(m, g) over the steps, updated here: ŝ ← γŝ + (1−γ)cos; d = (1+ŝ)/2.
    """
    cosine = dot(m, g) / above_zero(m.norm() * g.norm())
    alignment.lerp_(cosine, 1 - gamma)
    return (1 + alignment) / 2


def adopt(first: Tensor, g: Tensor, m: Tensor, v: Tensor, *, t: int, betas: tuple[float, float], eps: float) -> None:
    """ADOPT, Taniguchi et al. 2024, arXiv:2411.02853, algorithm 2: m of gradients normalised by the v of before g.

    t counts from 0, where only v = g² is set. `first` is the gradient that m takes: g itself, or what TAM left of it.
    The step is −lr·m, without bias corrections.
    """
    beta1, beta2 = betas
    if t == 0:
        v.copy_(g.square())
        return
    largest = t**0.25
    m.lerp_((first / v.sqrt().clamp_(min=eps)).clamp_(-largest, largest), 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)


def grams(update: Tensor, g: Tensor) -> Tensor:
    """Grams, Cao et al. 2024, arXiv:2412.17107: the size of the update with the sign of the gradient."""
    return g.sign().mul_(update.abs())


def cautious(update: Tensor, g: Tensor) -> Tensor:
    """Cautious, Liang et al. 2024, arXiv:2411.16085, algorithm 1: only where update and gradient agree, scaled up.

    The scale is n / (agreeing + 1): one element alone takes half a step.
    """
    agree = (update * g > 0).to(update.dtype)
    return update * agree.mul_(agree.numel() / (agree.sum() + 1))


def gram_matrix(a: Tensor) -> Tensor:
    """AAᵀ, (r, r), of a LoRA factor A (r, …), the kernel of a convolution laid flat."""
    a = a.flatten(1)
    return a @ a.T


def row_norms(b: Tensor, gram: Tensor) -> Tensor:
    """‖(BA)ᵢ‖ of each row of the product, (out,), for B (out, r, …): Bᵢ(AAᵀ)Bᵢᵀ, so that BA is never built."""
    b = b.flatten(1)
    return (b @ gram).mul_(b).sum(1).clamp_(min=0).sqrt_()


def allora(norms: Tensor, eta: float) -> Tensor:
    """ALLoRA, Huang & Balestriero 2024, arXiv:2410.09692: the rate of each row of B, 1/√(‖(BA)ᵢ‖ + 1/η²).

    The paper scales the gradient; Adam divides such a scale out again, so here it is the step that is scaled. At
    B = 0 it is η: then it is the ratio of the rates of B and A that LoRA+ asks for (arXiv:2402.12354).
    """
    return (norms + 1 / eta**2).rsqrt_()


def decay_share(step: int, transition: int, factor: float, floor: float) -> float:
    """Share of the weight decay at a step: 1 up to `transition`, then factor^((step − transition)/transition) ≥ floor.

    No paper: it is a curve of document 004, whose rows it meets up to step 3000 (its last row fits no such curve).
    """
    return max(floor, factor ** (max(0, step - transition) / transition))


def selective_projection(p: Tensor, before: Tensor, anchor: Tensor | None, g: Tensor, strength: float) -> Tensor:
    """SPD, Tian et al. 2024, arXiv:2411.01713, algorithm 1: p after a step, drawn back towards the anchor (None: 0).

    Only where the loss's gradient g at `before` points away from the anchor, and by the share of the distance that
    this step has added: λr(p − anchor).
    """
    away, was = (p, before) if anchor is None else (p - anchor, before - anchor)
    distance = away.norm()
    grown = ((distance - was.norm()) / above_zero(distance)).clamp_(0, 1)
    return p - away * torch.where(dot(g, was) > 0, strength * grown, 0.0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products over all elements, 0-dimensional."""
    return torch.dot(a.flatten(), b.flatten())


def above_zero(x: Tensor) -> Tensor:
    """`x`, or the smallest normal number where it is below: something to divide by."""
    return x.clamp(min=torch.finfo(x.dtype).tiny)
