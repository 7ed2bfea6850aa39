"""The Automagic_CameAMP family of document 001: one rule, two independent arguments.

`storage` says how the state rests ("fp32" or "8bit"), `context` whether momentum runs on several time scales and the
learning rates heed how training goes (`optimizers/context.py`). The four names are these two choices; the rule is in
`optimizers/cameamp.py`, the mask of learning rates in `optimizers/lr_mask.py`.

The published 32-bit class is followed to the digit. Its relatives' slips are not: the residual is kept, a schedule
acts on the mask in use alone, 8-bit bumps do not round away, and the slow momenta take the normalised gradient and are
corrected for their bias.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from optimeter.optimizers.core import lr_mask
from optimeter.optimizers.core.cameamp import Magnitudes, cameamp, magnitudes
from optimeter.optimizers.core.context import Context
from optimeter.optimizers.core.shell import (
    SIGNED,
    UNSIGNED,
    Checks,
    Common,
    Moment,
    Shell,
    Unpack,
    _fraction,
    whole,
    working,
)
from optimeter.optimizers.core.storage import COARSE, storage_of, write_back

WARMUP_ONLY = ("alignment", "alignment_scale", "polarity")


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

    rule = staticmethod(cameamp)
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
        "warmup_steps": whole(0),
        "context_window": whole(2),
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
            self._need_dense(p)
        if loss is not None:
            self.c_optim.report_loss(loss)
        group = self.param_groups[0]
        settings = {name: group[name] for name in ("context_window", "edge_threshold", "adaptation_rate")}
        direction, loss = self.c_optim.direction(parameters, group["seed"]), self.c_optim.take_loss(type(self).__name__)
        self.c_optim.update_context(direction, -loss if loss is not None and group["maximize"] else loss, **settings)

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
        if "alignment" in self.state[p] or not self.state[p]["step"]:
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
        if state["step"] >= group["warmup_steps"]:
            for name in WARMUP_ONLY:
                state.pop(name, None)
        p_work, g = working(p), working(p.grad)  # type: ignore[arg-type]
        g = -g if group["maximize"] else g
        lr_mask.update(state, g, group)
        moments = self.layout(p, group)
        loaded = {name: storage.load(state, name, moment, p_work.dtype) for name, moment in moments.items()}
        cameamp(
            p_work,
            g,
            self.learning_rates(p, group, p_work.dtype),
            loaded["exp_avg"],
            loaded["exp_avg_res"],
            loaded.get("exp_avg_sq"),
            loaded.get("alignment"),
            {k: loaded[f"exp_avg_{k}"] for k in group["momentum_scales"] if self.c_optim},
            Magnitudes(*(x.to(p.device) for x in together or magnitudes([g]))),
            step=state["step"],
            **{name: group[name] for name in self.settings},
        )
        key = (group["seed"], state["step"])
        for salt, (name, moment) in enumerate(moments.items(), start=1):
            period = int(name.removeprefix("exp_avg_")) if moment.kind == COARSE else 1
            if state["step"] % period == 0:  # between its ticks a slow momentum rests as it is
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
