"""The Automagic_CameAMP family of document 001: one rule, two independent arguments.

`storage` says how the state rests ("fp32" or "8bit"), `context` whether momentum runs on several time scales and the
learning rates heed how training goes. The four names are these two choices; the rule, the mask of learning rates and
the context are in `optimizers/automagic/`.

The published 32-bit class is followed to the digit. Its relatives' slips are not: the residual is kept, a schedule
acts on the mask in use alone, 8-bit bumps do not round away, and the slow momenta take the normalised gradient and are
corrected for their bias.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from optimeter.optimizers.automagic import lr_mask
from optimeter.optimizers.automagic.cameamp import Magnitudes, cameamp, magnitudes
from optimeter.optimizers.automagic.context import Context
from optimeter.optimizers.core.arguments import Check, Checks, above, at_least, is_fraction, whole
from optimeter.optimizers.core.shell import SIGNED, UNSIGNED, Basic, Moment, Shell, Unpack, constructor, working
from optimeter.optimizers.core.storage import COARSE

WARMUP_ONLY = ("alignment", "alignment_scale", "polarity")


class Shared(Basic, total=False):
    """The keyword arguments shared with the other optimizers here; block_size is called `blocksize` in this family."""

    min_8bit_size: int


def _scales(scales: Any) -> bool:
    return all(isinstance(k, int) and k >= 1 for k in scales) and len(set(scales)) == len(scales)


SHARE: Check = (lambda x: 0 <= x <= 1, "in [0, 1]")


class Automagic_CameAMP(Shell):  # noqa: N801 (the document's name)
    """State, bytes a parameter: 20.13 warming up, 16 after; with `context` and four scales 36.13 and 32.

    `lr` is where the learning rates of all elements begin; each then moves by `lr_bump` a step between `min_lr` and
    `max_lr` for `warmup_steps` steps. Weight decay acts in their first half only. `eps` = (added to g², added to the
    residual, unused). `came=False` clips gradients by t^¼ instead of normalising them. `full_finetune=True` leaves out
    the scaling of a matrix's rows by 1/√(‖row‖ + 1/eta²). The rest is for `context=True`: `momentum_scales`, steps
    between two ticks of each slow momentum, and what `optimizers/automagic/context.py` says. `verbose` prints what was
    made.
    """

    rule = staticmethod(cameamp)
    context = False  # the default
    together: Magnitudes | None = None  # of the group that is being stepped
    checks: Checks = {
        "min_lr": at_least(0),
        "max_lr": at_least(0),
        "lr_bump": at_least(0),
        "betas": (lambda betas: len(betas) == 3 and all(map(is_fraction, betas)), "three numbers in [0, 1)"),
        "eps": (lambda eps: len(eps) == 3 and min(eps) >= 0, "three numbers of at least 0"),
        "clip_threshold": above(0),
        "eta": above(0),
        "beta1_decay": SHARE,
        "warmup_steps": whole(0),
        "context_window": whole(2),
        "edge_threshold": SHARE,
        "adaptation_rate": SHARE,
        "momentum_scales": (_scales, "different whole numbers of at least 1"),
    }

    @constructor
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
        if verbose:
            print(self.describe())

    def defaults_from(self, own: dict[str, Any], shared: Basic) -> dict[str, Any]:
        """As the shell's; `context` is no group's setting, and what this family calls blocksize is its block_size."""
        if "block_size" in shared:
            raise TypeError(f"{type(self).__name__} takes no argument block_size; here it is called blocksize")
        context = own.pop("context")
        self.c_optim = Context() if (self.context if context is None else context) else None
        own["block_size"] = own.pop("blocksize")
        return super().defaults_from(own, shared)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "blocksize" in param_group:
            param_group["block_size"] = param_group.pop("blocksize")
        settings = self.defaults | param_group
        if settings["max_lr"] < settings["min_lr"]:
            self.refuse(f"max_lr must be at least min_lr={settings['min_lr']}, not {settings['max_lr']}")
        super().add_param_group(param_group)

    def describe(self) -> str:
        """One line: how much there is to train, and what of it rests in 8 bits."""
        sizes = [(p.numel(), group) for group in self.param_groups for p in group["params"]]
        total = max(sum(n for n, _ in sizes), 1)
        compressed = sum(n for n, group in sizes if group["storage"] == "8bit" and n >= group["min_8bit_size"])
        context = "on" if self.c_optim else "off"
        name, share = type(self).__name__, compressed / total
        return f"{name}: {len(sizes)} tensors, {total:,} elements, moments of {share:.0%} in 8 bits, context {context}"

    @property
    def wants_loss(self) -> bool:
        """Whether the loop should call `report_loss` before each step."""
        return self.c_optim is not None

    def report_loss(self, loss: Any) -> None:
        """Tell the context the loss of the coming step, a tensor or a number; `step(closure)` does it by itself."""
        if self.c_optim is None:
            self.refuse("report_loss needs context=True, as Automagic_CameAMP_COptim has it")
        self.c_optim.report_loss(loss)

    def average_lr(self) -> list[float]:
        """The mean of each group's mask under its schedule, without the rows' and the context's factors (for logs)."""
        averages = []
        for group in self.param_groups:
            started = [state for p in group["params"] if (state := self.state.get(p))]
            masks = [lr_mask.rates(state, group, torch.float32) * lr_mask.schedule(state, group) for state in started]
            count = sum(mask.numel() for mask in masks)
            averages.append(sum(float(mask.sum()) for mask in masks) / count if count else float(group["lr"]))
        return averages

    def begin(self, loss: Any) -> None:
        """Bring the context up to date before the groups are stepped."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        if self.c_optim is None or all(p.grad is None for p in parameters):
            return
        for p in parameters:
            self.need_dense(p)
        if loss is not None:
            self.c_optim.report_loss(loss)
        group = self.param_groups[0]
        settings = {name: group[name] for name in ("context_window", "edge_threshold", "adaptation_rate")}
        direction, loss = self.c_optim.direction(parameters, group["seed"]), self.c_optim.take_loss(type(self).__name__)
        self.c_optim.update_context(direction, -loss if loss is not None and group["maximize"] else loss, **settings)

    def step_group(self, group: dict[str, Any]) -> None:
        """Update the parameters of one group, whose gradients are measured together first."""
        parameters = [p for p in group["params"] if p.grad is not None]
        for p in parameters:
            self.need_dense(p)
        self.together = magnitudes([p.grad for p in parameters]) if parameters else None
        try:
            super().step_group(group)
        finally:
            self.together = None

    def layout(self, p: Tensor, group: dict[str, Any]) -> dict[str, Moment]:
        step = self.state[p]["step"]
        moments = {"exp_avg": Moment(SIGNED, p.shape), "exp_avg_res": Moment(UNSIGNED, p.shape)}
        if group["came"]:
            moments["exp_avg_sq"] = Moment(UNSIGNED, p.shape)
        if "alignment" in self.state[p] or not step:
            moments["alignment"] = Moment(SIGNED, p.shape)
        if self.c_optim is not None:
            for k in group["momentum_scales"]:  # between its ticks a slow momentum rests as it is
                moments[f"exp_avg_{k}"] = Moment(COARSE, p.shape, read_only=step % k != 0)
        return moments

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The parameter's state before a step, from the first one on with its mask and the scaling of its rows.

        What the warm-up alone needs goes when that is over.
        """
        state = self.state[p]
        if not state:
            super().start(p, group)
            state.update(lr_mask.start(p, group))
            if p.dim() == 2 and not group["full_finetune"]:
                state["row_scaling"] = (working(p).norm(dim=1) + group["eta"] ** -2).rsqrt_()
        if state["step"] + 1 >= group["warmup_steps"]:
            for name in WARMUP_ONLY:
                state.pop(name, None)
        return state

    def apply(
        self, p: Tensor, work: Tensor, g: Tensor, moments: dict[str, Tensor], step: int, group: dict[str, Any]
    ) -> None:
        """Move the mask of learning rates, then call the rule; a parameter stepped alone is a group of its own."""
        lr_mask.update(self.state[p], g, group)
        self.rule(
            work,
            g,
            self.learning_rates(p, group, work.dtype),
            moments["exp_avg"],
            moments["exp_avg_res"],
            moments.get("exp_avg_sq"),
            moments.get("alignment"),
            {k: moments[f"exp_avg_{k}"] for k in group["momentum_scales"] if self.c_optim},
            Magnitudes(*(x.to(p.device) for x in self.together or magnitudes([g]))),
            step=step,
            **self.settings_of(group),
        )

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
    """State: 36.13 and 32 bytes a parameter with four scales; see `optimizers/automagic/context.py`."""

    context = True


class Automagic_CameAMP_COptim8bit(Automagic_CameAMP_COptim):  # noqa: N801
    """State, bytes a parameter: 7.13 warming up, 6.01 after, the slow momenta being in 4 bits."""

    storage = "8bit"
