"""Sophia. Liu et al. 2023, arXiv:2305.14342, algorithm 3, with both estimators of curvature: algorithms 1 and 2.

The loop calls `update_hessian` every `hessian_every` steps, before the step of the same batch. Until the first call
h is 0 and every coordinate moves by lr, as in the authors' code.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from optimeter.optimizers.core.arguments import at_least
from optimeter.optimizers.core.shell import SIGNED, UNSIGNED, Common, Moment, Shell, Unpack, constructor, working
from optimeter.optimizers.core.storage import storage_of

ROUNDING, NOISE = 3, 4  # the last part of the keys of what is drawn at an estimate; the step's own are 0 to 2


def sophia(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    h: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    gamma: float,
    eps: float,
    weight_decay: float,
) -> None:
    """m: a moment like p; h: the running mean of the Hessian's diagonal, like p, only read here."""
    p.mul_(1 - lr * weight_decay)
    m.lerp_(g, 1 - betas[0])
    p.sub_((m / (gamma * h).clamp_(min=eps)).clamp_(-1, 1), alpha=lr)


def gauss_newton_bartlett(loss: Tensor, parameters: Sequence[Tensor], samples: int) -> list[Tensor | None]:
    """ĥ = B ĝ ⊙ ĝ, algorithm 2: unbiased for the diagonal of the Gauss–Newton matrix.

    `loss` is the mean over B = `samples` labels that were drawn from the model itself. None for a parameter that the
    loss does not depend on.
    """
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [None if g is None else working(g).square().mul_(samples) for g in dense(gradients)]


def hutchinson(loss: Tensor, parameters: Sequence[Tensor], directions: Sequence[Tensor]) -> list[Tensor | None]:
    """ĥ = u ⊙ (∇²L u), algorithm 1: unbiased for the diagonal of the Hessian; u, the `directions`, are like parameters.

    None for a parameter that the loss does not depend on.
    """
    gradients = dense(torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True))
    curved = [(g, u) for g, u in zip(gradients, directions, strict=True) if g is not None and g.requires_grad]
    if curved:
        outputs, along = zip(*curved, strict=True)
        products = torch.autograd.grad(outputs, parameters, along, allow_unused=True, materialize_grads=True)
    else:  # a linear loss
        products = tuple(torch.zeros_like(p) for p in parameters)
    terms = zip(gradients, directions, dense(products), strict=True)
    return [None if g is None else working(u) * working(product) for g, u, product in terms]  # type: ignore[arg-type]


def dense(gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The same; raises RuntimeError where one is sparse."""
    if any(g is not None and g.is_sparse for g in gradients):
        raise RuntimeError("Sophia estimates curvature from dense gradients; use nn.Embedding(…, sparse=False)")
    return gradients


def gaussian_like(p: Tensor, key: tuple[int, ...]) -> Tensor:
    """Independent N(0, 1) elements like `p`, from a generator of their own: equal keys give equal draws."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = torch.Generator(p.device).manual_seed(int.from_bytes(digest[:8], "little"))
    dtype = p.dtype if p.dtype == torch.float64 else torch.float32
    return torch.randn(p.shape, generator=generator, device=p.device, dtype=dtype).to(p.dtype)


class Sophia(Shell):
    """What both forms share. State: m and h, 8 bytes a parameter in fp32, 4 in bf16, 2 + 8/block_size in 8 bits.

    `gamma`: the larger it is, the fewer coordinates are clipped. `hessian_every`: steps between two estimates, for the
    loop to keep; `curvature_from`: the loss that `update_hessian` wants, of the ordinary labels or of sampled ones.
    """

    rule = staticmethod(sophia)
    elementwise = True
    hessian_every = 10
    curvature_from = "loss"
    kind = SIGNED  # of h
    checks = {
        "eps": (lambda eps: eps > 0, "above 0: h is 0 before the first estimate"),
        "gamma": at_least(0),
    }

    @constructor
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.96, 0.99),
        gamma: float = 0.01,
        eps: float = 1e-12,
        weight_decay: float = 0.1,
        **common: Unpack[Common],
    ) -> None: ...

    def layout(self, p: Tensor, group: dict[str, Any]) -> dict[str, Moment]:
        return {"exp_avg": Moment(SIGNED, p.shape), "hessian": Moment(self.kind, p.shape, read_only=True)}

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = super().start(p, group)
        state.setdefault("estimates", 0)
        return state

    def update_hessian(self, loss: Tensor, samples: int = 1) -> None:
        """h ← beta2 h + (1 − beta2) ĥ, from a `loss` with its graph that is the mean over `samples` labels.

        Works beside the training step: no `p.grad` is read or changed, and `loss` needs no backward of its own.
        """
        if samples < 1:
            self.refuse(
                f"samples must be at least 1, the number of labels that the loss is the mean over, not {samples}"
            )
        members = [(p, group) for group in self.param_groups for p in group["params"] if p.requires_grad]
        with torch.enable_grad():
            estimates = self.curvature(loss, members, samples)
        for (p, group), estimate in zip(members, estimates, strict=True):
            if estimate is not None:
                self.average(p, estimate, group)

    def curvature(
        self, loss: Tensor, members: Sequence[tuple[Tensor, dict[str, Any]]], samples: int
    ) -> list[Tensor | None]:
        """An estimate of the Hessian's diagonal for each (parameter, its group)."""
        raise NotImplementedError

    @torch.no_grad()
    def average(self, p: Tensor, estimate: Tensor, group: dict[str, Any]) -> None:
        """Take one estimate into the h of one parameter."""
        state, storage, moment = self.start(p, group), storage_of(group), self.layout(p, group)["hessian"]
        state["estimates"] += 1
        h = storage.load(state, "hessian", moment, estimate.dtype)
        h.lerp_(estimate, 1 - group["betas"][1])
        storage.store(state, "hessian", moment, h, (group["seed"], state["estimates"], ROUNDING))


class SophiaG(Sophia):
    """Curvature by Gauss–Newton–Bartlett: one backward on labels drawn from the model, for models that have labels."""

    curvature_from = "sampled_loss"
    kind = UNSIGNED

    @constructor
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.96, 0.99),
        gamma: float = 0.05,
        eps: float = 1e-12,
        weight_decay: float = 0.1,
        **common: Unpack[Common],
    ) -> None: ...

    def curvature(
        self, loss: Tensor, members: Sequence[tuple[Tensor, dict[str, Any]]], samples: int
    ) -> list[Tensor | None]:
        return gauss_newton_bartlett(loss, [p for p, _ in members], samples)


class SophiaH(Sophia):
    """Curvature by Hutchinson: a Hessian–vector product with Gaussian noise, for losses that bend twice."""

    def curvature(
        self, loss: Tensor, members: Sequence[tuple[Tensor, dict[str, Any]]], samples: int
    ) -> list[Tensor | None]:
        noise = []
        for index, (p, group) in enumerate(members):  # in the key: blocks of the Hessian mix where u is not independent
            count = self.state.get(p, {}).get("estimates", 0) + 1
            noise.append(gaussian_like(p, (group["seed"], count, NOISE, index)))
        estimates = hutchinson(loss, [p for p, _ in members], noise)
        ascends = [group["maximize"] for _, group in members]
        return [e if e is None or not up else -e for e, up in zip(estimates, ascends, strict=True)]
