"""The shell under every optimizer here: it walks the parameters, keeps their state and resumes exactly.

Three things stay apart, so that each can change alone (a fused path later, a new storage, a new algorithm):
the *rule*, a pure function of tensors that updates a parameter and its moments in place; the *storage*, which says
how a moment rests between steps; and the *walking*, which is here.
"""

import inspect
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optimizers.storage import SIGNED, STORAGES, UNSIGNED, Moment, write_back

__all__ = ["SIGNED", "UNSIGNED", "Moment", "Shell"]


def _fraction(value: Any) -> bool:
    return 0 <= value < 1


# What every algorithm asks of the arguments that they share: the test, and the words for it.
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (lambda lr: isinstance(lr, (int, float)) and lr >= 0, "a number of at least 0"),
    "betas": (lambda betas: all(_fraction(beta) for beta in betas), "each in [0, 1)"),
    "beta1": (lambda beta: beta is None or _fraction(beta), "None or in [0, 1)"),
    "eps": (lambda eps: min(eps) >= 0 if isinstance(eps, tuple) else eps >= 0, "at least 0"),
    "weight_decay": (lambda decay: decay >= 0, "at least 0"),
    "storage": (lambda storage: storage in STORAGES, f"one of {', '.join(STORAGES)}"),
}


class Shell(Optimizer):
    """Walks parameters, keeps state, validates arguments and resumes exactly; subclasses supply the meaning.

    A subclass sets `moments` (state key → SIGNED or UNSIGNED, each of the parameter's shape) and `rule`, called as
    ``rule(p, g, *moments, step=…, **settings)``: it changes `p` and the moments in place and leaves `g` alone. All are
    fp32, or fp64 for fp64 parameters; `step` counts from 1. Its keyword-only arguments are looked up by name in the
    parameter group, so schedulers and per-group settings work.
    """

    moments: dict[str, str] = {}
    rule: Callable[..., None]
    settings: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "rule" in cls.__dict__:
            arguments = inspect.signature(cls.rule).parameters.values()
            cls.settings = tuple(a.name for a in arguments if a.kind is a.KEYWORD_ONLY and a.name != "step")

    def __init__(self, params: Iterable, defaults: dict[str, Any], *, storage: str, maximize: bool, seed: int) -> None:
        super().__init__(params, defaults | {"storage": storage, "maximize": maximize, "seed": seed})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its settings; raises ValueError naming the argument and what it must be."""
        for name, value in (self.defaults | param_group).items():
            if isinstance(value, list) and name != "params":  # YAML has no tuples
                value = param_group[name] = tuple(value)
            accepts, wanted = CHECKS.get(name, (None, ""))
            if accepts and not accepts(value):
                raise ValueError(f"{type(self).__name__}: {name} must be {wanted}, not {value!r}")
        super().add_param_group(param_group)
        if any(p.is_complex() for p in self.param_groups[-1]["params"]):
            raise ValueError(f"{type(self).__name__} takes real parameters; give it torch.view_as_real(p)")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.step_parameter(p, group)
        return loss

    def layout(self, p: Tensor, group: dict[str, Any]) -> dict[str, Moment]:
        """The moments that `p` keeps, in the order in which the rule takes them."""
        return {name: Moment(kind, p.shape) for name, kind in self.moments.items()}

    def apply(self, p: Tensor, g: Tensor, moments: list[Tensor], step: int, group: dict[str, Any]) -> None:
        """Call the rule on working copies; override where the moments need arranging first."""
        self.rule(p, g, *moments, step=step, **{name: group[name] for name in self.settings})

    @torch.no_grad()
    def step_parameter(self, p: Tensor, group: dict[str, Any]) -> None:
        """Update one parameter from its gradient: the unit of work, also for releasing gradients in the backward."""
        if p.grad.is_sparse:  # type: ignore[union-attr]
            raise RuntimeError(f"{type(self).__name__} needs dense gradients; SparseAdam takes sparse ones")
        state, storage = self.start(p, group), STORAGES[group["storage"]]
        state["step"] += 1
        p_work, g = working(p), working(p.grad)  # type: ignore[arg-type]
        if group["maximize"]:
            g = -g
        names = self.layout(p, group)
        moments = [storage.load(state, name, p_work.dtype) for name in names]
        self.apply(p_work, g, moments, state["step"], group)
        key = (group["seed"], state["step"])
        for salt, (name, moment) in enumerate(zip(names, moments, strict=True), start=1):
            storage.store(state, name, moment, (*key, salt))
        if p_work is not p:
            write_back(p, p_work, (*key, 0))

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The parameter's state, zeros and step 0 on its first step."""
        state = self.state[p]
        if not state:
            state["step"] = 0
            for name, moment in self.layout(p, group).items():
                state.update(STORAGES[group["storage"]].zeros(name, moment, p))
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore groups and state; the state keeps its own dtypes (torch's version casts it to the parameter's)."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, p in zip(saved, own, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][name] = value.to(p.device, copy=True)


def working(x: Tensor) -> Tensor:
    """`x` in the precision of the rules: fp64 stays fp64, everything else is fp32; no copy where none is needed."""
    return x if x.dtype == torch.float64 else x.float()
