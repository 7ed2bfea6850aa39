"""The Automagic_CameAMP family of document 001, in its clean form: one rule, two independent arguments.

`storage` says how the state rests ("fp32" or "8bit"), `context` whether momentum runs on several time scales and the
learning rates heed how training goes (see `optimizers/context.py`). The four names are these two choices.

The rule strings together AGR (arXiv:2407.16944), CAME's confidence (arXiv:2307.02047) without factoring, torque-aware
momentum (arXiv:2412.18790), a decaying beta1 (arXiv:2404.07946), Grams (arXiv:2412.17107), ⊥Grad (arXiv:2501.04697),
AdaDecay (arXiv:1907.08931), ALLoRA's row scaling (arXiv:2410.09692) and Automagic's mask of learning rates
(`optimizers/lr_mask.py`). It follows the published 32-bit class, which trains, and not its relatives' slips: the
residual is kept, a schedule acts on the frozen mask in use alone, and the slow momenta take the normalised gradient
and are corrected for their bias. One element alone is left out of AGR and ⊥Grad, which would stop it for good.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from optimizers import lr_mask
from optimizers.base import SIGNED, UNSIGNED, Checks, Common, Moment, Shell, Unpack, _fraction, _whole, working
from optimizers.context import Context
from optimizers.storage import COARSE, storage_of, write_back

SLOW_DECAY, ALIGNMENT_DECAY = 0.9, 0.9  # of the slow momenta, a tick; of the torque, a step
LEAST_BETA1 = 0.4
TINY = 1e-30
WARMUP_ONLY = ("alignment", "alignment_scale", "polarity")


class Magnitudes(NamedTuple):
    """Of |g| over all elements of a group, 0-dimensional."""

    total: Tensor
    mean: Tensor
    std: Tensor


def automagic_cameamp(
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
    dtype = torch.float64 if gradients[0].dtype == torch.float64 else torch.float32
    norms = [
        torch.stack([n.to(device) for n in torch._foreach_norm(gradients, order, dtype=dtype)]) for order in (1, 2)
    ]
    count = max(sum(g.numel() for g in gradients), 1)
    total, squares = (x.where(x.isfinite(), 0.0).sum() for x in (norms[0], norms[1].square()))
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    share_of = total.clamp(min=TINY) if count > 1 else torch.full_like(total, torch.inf)
    return Magnitudes(share_of, mean, std.clamp(min=TINY))


class Shared(TypedDict, total=False):
    """The keyword arguments shared with the other optimizers here; block_size is called `blocksize` in this family."""

    maximize: bool
    storage: str
    min_8bit_size: int
    seed: int


def _scales(scales: Any) -> bool:
    return all(isinstance(k, int) and k >= 1 for k in scales) and len(set(scales)) == len(scales)


RATE: tuple[Callable[[Any], bool], str] = (lambda x: x >= 0, "at least 0")
SHARE: tuple[Callable[[Any], bool], str] = (lambda x: 0 <= x <= 1, "in [0, 1]")


class Automagic_CameAMP(Shell):  # noqa: N801 (the document's name)
    """State, bytes a parameter: 20.13 warming up, 16 after; with `context` and four scales 36.13 and 32.

    `lr` is where the learning rates of all elements begin; each then moves by `lr_bump` a step between `min_lr` and
    `max_lr` for `warmup_steps` steps. Weight decay acts in their first half only. `eps` = (added to g², added to the
    residual, unused). `came=False` clips gradients by t^¼ instead of normalising them. `full_finetune=True` leaves out
    the scaling of a matrix's rows by 1/√(‖row‖ + 1/eta²). The rest is for `context=True`: `momentum_scales`, steps
    between two ticks of each slow momentum, and what `optimizers/context.py` says. `verbose` prints what was made.
    """

    rule = staticmethod(automagic_cameamp)
    context = False  # the default
    checks: Checks = {
        "min_lr": RATE,
        "max_lr": RATE,
        "lr_bump": RATE,
        "betas": (lambda betas: len(betas) == 3 and all(map(_fraction, betas)), "three numbers in [0, 1)"),
        "eps": (lambda eps: len(eps) == 3 and min(eps) >= 0, "three numbers of at least 0"),
        "clip_threshold": (lambda x: x > 0, "above 0"),
        "eta": (lambda x: x > 0, "above 0"),
        "beta1_decay": SHARE,
        "warmup_steps": _whole(0),
        "context_window": _whole(2),
        "edge_threshold": SHARE,
        "adaptation_rate": SHARE,
        "momentum_scales": (_scales, "different whole numbers of at least 1"),
    }

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-6,
        min_lr: float = 1e-7,
        max_lr: float = 1e-3,
        lr_bump: float = 3e-6,
        eps: tuple[float, float, float] = (1e-30, 1e-16, 1e-8),
        clip_threshold: float = 1.0,
        betas: tuple[float, float, float] = (0.8, 0.99, 0.999),
        eta: float = 2.0,
        beta1_decay: float = 0.9995,
        weight_decay: float = 5e-4,
        warmup_steps: int = 500,
        context_window: int = 100,
        edge_threshold: float = 0.95,
        adaptation_rate: float = 0.1,
        momentum_scales: Sequence[int] = (1, 5, 10, 25),
        came: bool = True,
        full_finetune: bool = False,
        verbose: bool = False,
        blocksize: int = 4096,
        context: bool | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        defaults = {k: v for k, v in locals().items() if k not in ("self", "params", "shared", "context", "__class__")}
        if "block_size" in shared:
            raise TypeError(f"{type(self).__name__} takes no argument block_size; here it is called blocksize")
        if max_lr < min_lr:
            self.refuse(f"max_lr must be at least min_lr={min_lr}, not {max_lr}")
        self.c_optim = Context() if (self.context if context is None else context) else None
        defaults["momentum_scales"] = tuple(momentum_scales)
        common: Common = {**shared, "block_size": defaults.pop("blocksize")}
        super().__init__(params, defaults, common)
        if verbose:
            print(self.describe())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "blocksize" in param_group:
            param_group["block_size"] = param_group.pop("blocksize")
        super().add_param_group(param_group)

    def describe(self) -> str:
        """One line: how much there is to train, and what of it rests in 8 bits."""
        sizes = [(p.numel(), group) for group in self.param_groups for p in group["params"]]
        total = max(sum(n for n, _ in sizes), 1)
        compressed = sum(n for n, group in sizes if group["storage"] == "8bit" and n >= group["min_8bit_size"])
        context = "on" if self.c_optim else "off"
        name, share = type(self).__name__, compressed / total
        return f"{name}: {len(sizes)} tensors, {total:,} elements, moments of {share:.0%} in 8 bits, context {context}"

    def report_loss(self, loss: Any) -> None:
        """Tell the context the loss of the coming step, a tensor or a number; `step(closure)` does it by itself."""
        if self.c_optim is None:
            self.refuse("report_loss needs context=True, as Automagic_CameAMP_COptim has it")
        self.c_optim.report_loss(loss)

    def average_lr(self) -> list[float]:
        """The mean of each group's mask as a schedule leaves it, without rows' and context's factors; reads the device."""
        return [
            sum(float(lr_mask.rates(s, group, torch.float32).sum()) * lr_mask.schedule(s, group) for s in states)
            / max(sum(s["lr_mask"].numel() for s in states), 1)
            for group in self.param_groups
            for states in [[self.state[p] for p in group["params"] if "lr_mask" in self.state.get(p, {})]]
        ]

    def begin(self, loss: Any) -> None:
        """Bring the context up to date before the groups are stepped."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        if self.c_optim is None or all(p.grad is None for p in parameters):
            return
        for p in parameters:
            self._need_dense(p)
        if loss is not None:
            self.c_optim.report_loss(loss)
        group = self.param_groups[0]
        settings = {name: group[name] for name in ("context_window", "edge_threshold", "adaptation_rate")}
        direction = self.c_optim.direction(parameters, group["seed"])
        self.c_optim.update_context(direction, self.c_optim.take_loss(type(self).__name__), **settings)

    def _need_dense(self, p: Tensor) -> None:
        if p.grad is not None and p.grad.is_sparse:
            raise RuntimeError(f"{type(self).__name__} needs dense gradients; SparseAdam takes sparse ones")

    def step_group(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        for p in parameters:
            self._need_dense(p)
        together = magnitudes([p.grad for p in parameters]) if parameters else None
        for p in parameters:
            self.step_parameter(p, group, together)

    def layout(self, p: Tensor, group: dict[str, Any]) -> dict[str, Moment]:
        moments = {"exp_avg": Moment(SIGNED, p.shape), "exp_avg_res": Moment(UNSIGNED, p.shape)}
        if group["came"]:
            moments["exp_avg_sq"] = Moment(UNSIGNED, p.shape)
        if self.state[p]["step"] < group["warmup_steps"]:
            moments["alignment"] = Moment(SIGNED, p.shape)
        if self.c_optim is not None:
            moments |= {f"exp_avg_{k}": Moment(COARSE, p.shape) for k in group["momentum_scales"]}
        return moments

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The parameter's state, on its first step with its mask and the scaling of its rows."""
        state = self.state[p]
        if not state:
            super().start(p, group)
            state.update(lr_mask.start(p, group))
            if p.dim() == 2 and not group["full_finetune"]:
                state["row_scaling"] = (working(p).norm(dim=1) + group["eta"] ** -2).rsqrt_()
        return state

    @torch.no_grad()
    def step_parameter(self, p: Tensor, group: dict[str, Any], together: Magnitudes | None = None) -> None:
        """Update one parameter; `together` are its group's magnitudes, by default its own."""
        state, storage = self.start(p, group), storage_of(group)
        state["step"] += 1
        if state["step"] == group["warmup_steps"]:
            for name in WARMUP_ONLY:
                state.pop(name, None)
        p_work, g = working(p), working(p.grad)  # type: ignore[arg-type]
        g = -g if group["maximize"] else g
        lr_mask.update(state, g, group)
        moments = self.layout(p, group)
        loaded = {name: storage.load(state, name, moment, p_work.dtype) for name, moment in moments.items()}
        automagic_cameamp(
            p_work,
            g,
            self.learning_rates(p, group, p_work.dtype),
            *(loaded.get(name) for name in ("exp_avg", "exp_avg_res", "exp_avg_sq", "alignment")),
            {k: loaded[f"exp_avg_{k}"] for k in group["momentum_scales"] if self.c_optim},
            together or magnitudes([p.grad]),  # type: ignore[list-item]
            step=state["step"],
            **{name: group[name] for name in self.settings},
        )
        key = (group["seed"], state["step"])
        for salt, (name, moment) in enumerate(moments.items(), start=1):
            if (
                moment.kind != COARSE or state["step"] % int(name.rpartition("_")[2]) == 0
            ):  # between ticks nothing moved
                storage.store(state, name, moment, loaded[name], (*key, salt))
        if p_work is not p:
            write_back(p, p_work, (*key, 0))

    def learning_rates(self, p: Tensor, group: dict[str, Any], dtype: torch.dtype) -> Tensor:
        """Of each element: the mask times what the schedule, the context and the scaling of rows make of it."""
        state = self.state[p]
        factor: Any = lr_mask.schedule(state, group)
        if self.c_optim is not None and self.c_optim.previous is not None:
            factor = self.c_optim.multiplier.to(p.device, dtype) * factor
        if "row_scaling" in state:
            factor = state["row_scaling"].unsqueeze(1) * factor
        return lr_mask.rates(state, group, dtype) * factor

    def state_dict(self) -> dict[str, Any]:
        """torch's, and the context beside it."""
        saved = super().state_dict()
        return saved if self.c_optim is None else {**saved, "context": self.c_optim.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.c_optim is not None:
            self.c_optim.load_state_dict(state_dict.get("context", {}), self.param_groups[0]["params"][0].device)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "c_optim": self.c_optim}


class Automagic_CameAMP8bit(Automagic_CameAMP):  # noqa: N801
    """State, bytes a parameter: 5.13 warming up, 4.004 after."""

    storage = "8bit"


class Automagic_CameAMP_COptim(Automagic_CameAMP):  # noqa: N801
    """State: 36.13 and 32 bytes a parameter with four scales; see `optimizers/context.py` for what is heeded."""

    context = True


class Automagic_CameAMP_COptim8bit(Automagic_CameAMP_COptim):  # noqa: N801
    """State, bytes a parameter: 7.13 warming up, 6.01 after, the slow momenta being in 4 bits."""

    storage = "8bit"
