"""CustomAdamW of document 004: AdamW in 8 bits with nine techniques, each a flag, each as its paper has it.

Where the document's own code differs from the papers that it names, the papers win (see
`optimizers/custom/techniques.py`).
"""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from optimeter.optimizers.core.arguments import FRACTION, above, at_least, between
from optimeter.optimizers.core.shell import SIGNED, UNSIGNED, Common, Moment, Shell, Unpack, constructor, working
from optimeter.optimizers.custom.lora import pair_factors
from optimeter.optimizers.custom.techniques import (
    adopt,
    allora,
    cautious,
    decay_share,
    gram_matrix,
    grams,
    orthogonal_gradient,
    regularized_gradient,
    row_norms,
    selective_projection,
    torque,
)

TECHNIQUES = (
    "use_spd",
    "use_cautious",
    "use_orthogonal_grad",
    "use_adopt_stability",
    "use_grams",
    "use_agr",
    "use_tam",
    "use_alora",
    "dynamic_weight_decay",
)
ON_PAIRS = ("use_alora", "dynamic_weight_decay")  # what acts on the factors of a LoRA alone
LEAST_TORQUE = 1e-8  # the ε of TAM: an opposed gradient still enters a little


def custom_adamw(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    v_max: Tensor | None = None,
    alignment: Tensor | None = None,
    anchor: Tensor | None = None,
    row_rates: Tensor | None = None,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    use_spd: bool,
    spd_lambda: float,
    use_cautious: bool,
    use_orthogonal_grad: bool,
    use_adopt_stability: bool,
    use_grams: bool,
    use_agr: bool,
    tam_beta: float,
) -> None:
    """m, v: moments like p; v_max: the largest v so far, with amsgrad; alignment: TAM's scalar; anchor: SPD's, None
    for 0; row_rates: ALLoRA's factor of each row's rate. With nothing on it is AdamW to the bit."""
    beta1, beta2 = betas
    loss_gradient, before = g, p.clone() if use_spd else p
    if use_orthogonal_grad:
        g = orthogonal_gradient(g, p)
    if use_agr:
        g = regularized_gradient(g)
    first = g if alignment is None else g * (torque(m, g, alignment, tam_beta) + LEAST_TORQUE)
    if use_adopt_stability:
        adopt(first, g, m, v, t=step - 1, betas=betas, eps=eps)
        if step == 1:
            return  # ADOPT's first gradient only tells the scale
        update, denominator, rate = m, None, lr
    else:
        m.lerp_(first, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        if v_max is not None:
            v = torch.maximum(v_max, v, out=v_max)
        denominator = v.sqrt().mul_((1 - beta2**step) ** -0.5).add_(eps)
        update, rate = m, lr / (1 - beta1**step)
    if use_grams:
        update = grams(update, g)
    if use_cautious:
        update = cautious(update, g)
    if row_rates is not None:
        update = update * row_rates
    p.mul_(1 - lr * weight_decay)
    p.add_(update, alpha=-rate) if denominator is None else p.addcdiv_(update, denominator, value=-rate)
    if use_spd:
        p.copy_(selective_projection(p, before, anchor, loss_gradient, spd_lambda))


class CustomAdamW(Shell):
    """State: 2 + 8/block_size bytes a parameter (8 in fp32) and with TAM 4 a tensor; SPD adds an anchor, a copy of the
    parameter as it was at its first step, except for LoRA pairs, whose anchor is 0.

    Give it `model.named_parameters()`: the factors of a LoRA are known by their names. ALLoRA and the decay curve act
    on pairs of them and on nothing else; a factor without its partner is a parameter like any other.

    - use_orthogonal_grad, use_agr: change the gradient. Grams and Cautious see what they leave, SPD sees the loss's.
    - use_tam: the first moment takes a damped gradient. `tam_beta` is its γ: 0.999 in the document, 0.9 in the paper.
    - use_adopt_stability: ADOPT in place of Adam's moments. Its first step moves nothing. It divides by v as that has
      rested: 8 bits keep above 0 what is above 0, and the clip bounds what is left.
    - use_grams or use_cautious: not both.
    - use_alora: ALLoRA's rates for the rows of B. `alora_ratio` is its η, the rate of B over that of A at B = 0. Every
      A is read before any parameter moves, so the parameters' order does not matter.
    - weight_decay acts before the step, as AdamW's; with dynamic_weight_decay on pairs by the share that
      `decay_share(step, wd_transition_steps, wd_decay_factor, wd_min_ratio)` gives.
    - use_spd: last of all, with `spd_lambda`. The paper has it in place of weight decay: then set weight_decay=0.

    `storage` does what `optim_bits` did; bitsandbytes' `args`, `percentile_clipping`, `block_wise` and `is_paged` are
    not taken.
    """

    moments = {"exp_avg": SIGNED, "exp_avg_sq": UNSIGNED}
    rule = staticmethod(custom_adamw)
    storage = "8bit"
    checks = {
        "spd_lambda": at_least(0),
        "tam_beta": FRACTION,
        "alora_ratio": above(0),
        "wd_transition_steps": at_least(1),
        "wd_decay_factor": between(0, 1),
        "wd_min_ratio": between(0, 1),
    }

    @constructor
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        use_spd: bool = True,
        spd_lambda: float = 0.1,
        use_cautious: bool = False,
        use_orthogonal_grad: bool = False,
        use_adopt_stability: bool = True,
        use_grams: bool = True,
        use_agr: bool = True,
        use_tam: bool = True,
        tam_beta: float = 0.999,
        use_alora: bool = True,
        alora_ratio: float = 21.0,
        dynamic_weight_decay: bool = True,
        wd_transition_steps: int = 1000,
        wd_decay_factor: float = 0.7,
        wd_min_ratio: float = 0.1,
        **common: Unpack[Common],
    ) -> None: ...

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As the shell's; refuses flags that do not go together, and looks for LoRA pairs again."""
        group = self.defaults | param_group
        if group["use_grams"] and group["use_cautious"]:
            self.refuse("use_grams makes every sign agree, so use_cautious would mask nothing: choose one of them")
        if group["use_adopt_stability"] and group["amsgrad"]:
            self.refuse("amsgrad=True needs use_adopt_stability=False: ADOPT keeps no largest second moment")
        super().add_param_group(param_group)
        self._pair_factors()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pair_factors()

    def _pair_factors(self) -> None:
        named = chain.from_iterable(zip(g.get("param_names", ()), g["params"], strict=False) for g in self.param_groups)
        self.factors = pair_factors(named)
        self.in_pairs = {*self.factors.pairs.keys(), *self.factors.pairs.values()}
        self.gram_matrices: dict[Tensor, Tensor] = {}  # B → AAᵀ, during a step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; ALLoRA reads each A as it is when this is called."""
        if any(group["use_alora"] for group in self.param_groups):
            self.gram_matrices = {b: gram_matrix(working(a)) for b, a in self.factors.pairs.items()}
        try:
            return super().step(closure)
        finally:
            self.gram_matrices = {}

    def layout(self, p: Tensor, group: dict[str, Any]) -> dict[str, Moment]:
        maximum = {"max_exp_avg_sq": Moment(UNSIGNED, p.shape)} if group["amsgrad"] else {}
        alignment = {"momentum_alignment": Moment(SIGNED, torch.Size(), exact=True)} if group["use_tam"] else {}
        return super().layout(p, group) | maximum | alignment

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = super().start(p, group)
        if p in self.in_pairs:
            state.pop("anchor", None)  # its partner came later than its first step
        elif group["use_spd"] and "anchor" not in state:
            state["anchor"] = p.detach().clone()
        return state

    def apply(
        self, p: Tensor, work: Tensor, g: Tensor, moments: dict[str, Tensor], step: int, group: dict[str, Any]
    ) -> None:
        settings = self.settings_of(group)
        if group["dynamic_weight_decay"] and p in self.in_pairs:
            curve = (group["wd_transition_steps"], group["wd_decay_factor"], group["wd_min_ratio"])
            settings["weight_decay"] *= decay_share(step, *curve)
        self.rule(
            work,
            g,
            moments["exp_avg"],
            moments["exp_avg_sq"],
            moments.get("max_exp_avg_sq"),
            moments.get("momentum_alignment"),
            self.state[p].get("anchor"),
            self._row_rates(p, work, group),
            step=step,
            **settings,
        )

    def _row_rates(self, p: Tensor, work: Tensor, group: dict[str, Any]) -> Tensor | None:
        """ALLoRA's factors, (out, 1, …), where `p` is the B of a pair."""
        a = self.factors.pairs.get(p)
        if a is None or not group["use_alora"]:
            return None
        gram = self.gram_matrices.get(p)
        if gram is None:  # outside of step(): A as it is now
            gram = gram_matrix(working(a))
        factors = allora(row_norms(work, gram.to(work)), group["alora_ratio"])
        return factors.view(-1, *[1] * (work.dim() - 1))

    def get_optimization_info(self) -> dict[str, Any]:
        """What is on, what LoRA factors were found, and which techniques have nothing to act on, with the reason."""
        groups, factors = self.param_groups, self.factors
        techniques = {name: any(group[name] for group in groups) for name in TECHNIQUES}
        named = any("param_names" in group for group in groups)
        reason = "no LoRA pair among the parameters" if named else "the parameters have no names: give named ones"
        return {
            "type": type(self).__name__,
            "tensors": sum(len(group["params"]) for group in groups),
            "techniques": techniques,
            "lora": {"a": factors.a, "b": factors.b, "pairs": len(factors.pairs), "unpaired": factors.unpaired},
            "idle": {name: reason for name in ON_PAIRS if techniques[name] and not factors.pairs},
        }
