"""The shell under every optimizer here: it walks the parameters, keeps their state and resumes exactly.

Three things stay apart, so that each can change alone (a fused path later, a new storage, a new algorithm):
the *rule*, a pure function of tensors that updates a parameter and its moments in place; the *storage*, which says
how a moment rests between steps; and the *walking*, which is here.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from itertools import chain
from typing import Any, NoReturn, TypeVar, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from optimeter.optimizers.core.arguments import CHECKS, NO_8BIT, Basic, Checks, Common
from optimeter.optimizers.core.quantize import CODED, borders, code_map, in_caches
from optimeter.optimizers.core.storage import SIGNED, UNSIGNED, WHOLE, Moment, cut, storage_of, write_back

__all__ = ["NO_8BIT", "SIGNED", "UNSIGNED", "Basic", "Common", "Moment", "Shell", "Unpack", "constructor", "working"]

# Elementwise rules work through a big tensor in parts of so many elements, which bounds their temporaries. Where the
# moments are decoded first there are many of these: on a CPU they all should stay in its caches.
PART, CACHED_PART = 1 << 22, 1 << 17


Init = TypeVar("Init", bound=Callable[..., None])


def constructor(init: Init) -> Init:
    """Decorator of an optimizer's `__init__`: its arguments but `params` become the settings of the parameter groups.

    The signature says all there is to say, once: names, types, defaults. The body, mostly empty, runs afterwards.
    """
    signature = inspect.signature(init)
    rest = [a.name for a in signature.parameters.values() if a.kind is a.VAR_KEYWORD]  # `**common`

    @wraps(init)
    def construct(self: "Shell", /, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        params, own = bound.args[1], dict([*bound.arguments.items()][2:])
        shared: Basic = own.pop(rest[0]) if rest else {}
        Shell.__init__(self, params, own, shared)
        init(self, *args, **kwargs)

    return construct  # type: ignore[return-value]


class Shell(Optimizer):
    """Walks parameters, keeps state, validates arguments and resumes exactly; subclasses supply the meaning.

    A subclass sets `moments` (state key → SIGNED or UNSIGNED, each of the parameter's shape) and `rule`, called as
    ``rule(p, g, *moments, step=…, **settings)``: it changes `p` and the moments in place and leaves `g` alone. All are
    fp32, or fp64 for fp64 parameters; `step` counts from 1. Its keyword-only arguments are looked up by name in the
    parameter group, so schedulers and per-group settings work. Its `__init__` is a `constructor`. Where moments have
    other shapes it overrides `layout`; where the rule wants them arranged, `apply`.
    """

    moments: dict[str, str] = {}
    rule: Callable[..., None]
    elementwise = False  # the rule treats each element alone, so a tensor may be worked through in parts
    storage = "fp32"  # the default
    checks: Checks = {}  # of the algorithm's own arguments
    settings: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "rule" in cls.__dict__:
            arguments = inspect.signature(cls.rule).parameters.values()
            cls.settings = tuple(a.name for a in arguments if a.kind is a.KEYWORD_ONLY and a.name != "step")

    def __init__(self, params: Iterable, own: dict[str, Any], shared: Basic) -> None:
        super().__init__(params, self.defaults_from(own, shared))

    def defaults_from(self, own: dict[str, Any], shared: Basic) -> dict[str, Any]:
        """The settings of the groups, from an optimizer's own arguments and from those that it shares with the others.

        Raises TypeError for an argument that is neither.
        """
        defaults = {"maximize": False, "storage": self.storage, "block_size": 256, "min_8bit_size": 4096, "seed": 0}
        for name in shared:
            if name not in defaults:
                names = ", ".join(own | defaults)
                raise TypeError(f"{type(self).__name__} takes no argument {name}; it takes {names}")
        return defaults | own | shared

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its settings; raises ValueError naming the argument and what it must be."""
        checks = CHECKS | self.checks
        for name, value in (self.defaults | param_group).items():
            if isinstance(value, list) and name != "params":  # YAML has no tuples
                value = param_group[name] = tuple(value)
            accepts, wanted = checks.get(name, (None, ""))
            if accepts and not accepts(value):
                self.refuse(f"{name} must be {wanted}, not {value!r}")
        super().add_param_group(param_group)
        if any(p.is_complex() for p in self.param_groups[-1]["params"]):
            self.refuse("it takes real parameters; give it torch.view_as_real(p)")
        self._share_code_maps()

    def refuse(self, reason: str) -> NoReturn:
        """Raise ValueError with one line that names the optimizer."""
        raise ValueError(f"{type(self).__name__}: {reason}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share_code_maps()

    def _share_code_maps(self) -> None:
        """Hold the tables without which 8-bit state cannot be read or written, so that a count of the bytes finds them.

        A CPU writes by another table, which is the process's and no optimizer's.
        """
        in_8_bits = [g for g in self.param_groups if g["storage"] == "8bit"]
        by_device = {p.device: p for g in in_8_bits for p in g["params"] if p.numel() >= max(g["min_8bit_size"], 1)}
        self.shared = {str(d): {f"{kind}_map": code_map(kind, d) for kind in CODED} for d in by_device}
        for d, p in by_device.items():
            if not p.is_cpu:
                self.shared[str(d)] |= {f"{kind}_borders": borders(kind, d) for kind in CODED}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.begin(loss)
        for group in self.param_groups:
            self.step_group(group)
        return loss

    def begin(self, loss: Any) -> None:
        """Called once a step before the groups, with what the closure returned (None without one)."""

    def step_group(self, group: dict[str, Any]) -> None:
        """Update the parameters of one group; override where they must be looked at together."""
        for p in group["params"]:
            if p.grad is not None:
                self.step_parameter(p, group)

    def layout(self, p: Tensor, group: dict[str, Any]) -> dict[str, Moment]:
        """The moments that `p` keeps, in the order in which the rule takes them."""
        return {name: Moment(kind, p.shape) for name, kind in self.moments.items()}

    def apply(
        self, p: Tensor, work: Tensor, g: Tensor, moments: dict[str, Tensor], step: int, group: dict[str, Any]
    ) -> None:
        """Call the rule on the parameter `p`: on `work`, its values or a part of them, and on moments by name.

        Override where the rule wants the moments arranged, or something beside them.
        """
        self.rule(work, g, *moments.values(), step=step, **self.settings_of(group))

    def settings_of(self, group: dict[str, Any]) -> dict[str, Any]:
        """The rule's keyword arguments, but `step`."""
        return {name: group[name] for name in self.settings}

    @torch.no_grad()
    def step_parameter(self, p: Tensor, group: dict[str, Any]) -> None:
        """Update one parameter from its gradient: the unit of work, also for releasing gradients in the backward."""
        self.need_dense(p)
        state, storage = self.start(p, group), storage_of(group)
        state["step"] += 1
        layout = self.layout(p, group)
        key = (group["seed"], state["step"])
        for part in self.parts(p, group):
            values = cut(p, part)
            work, g = working(values), working(cut(p.grad, part))  # type: ignore[arg-type]
            if group["maximize"]:
                g = -g
            moments = {name: storage.load(state, name, moment, work.dtype, part) for name, moment in layout.items()}
            self.apply(p, work, g, moments, state["step"], group)
            for salt, (name, moment) in enumerate(layout.items(), start=1):
                if not moment.read_only:
                    storage.store(state, name, moment, moments[name], (*key, salt), part)
            if work is not values:
                write_back(values, work, (*key, 0), part.start)

    def need_dense(self, p: Tensor) -> None:
        """Raise RuntimeError where the gradient of `p` is sparse."""
        if p.grad is not None and p.grad.is_sparse:
            raise RuntimeError(f"{type(self).__name__} needs dense gradients; SparseAdam takes sparse ones")

    def parts(self, p: Tensor, group: dict[str, Any]) -> Iterator[slice]:
        """The parts of the flattened `p` to work on in turn, cut between blocks; or the whole of it, in its shape."""
        most = CACHED_PART if in_caches(p) and group["storage"] != "fp32" else PART
        size = max(most // group["block_size"], 1) * group["block_size"]
        flat = p.is_contiguous() and p.grad.is_contiguous()  # type: ignore[union-attr]
        if not (self.elementwise and flat and p.numel() > size):
            yield WHOLE
        else:
            for begin in range(0, p.numel(), size):
                yield slice(begin, min(begin + size, p.numel()))

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The parameter's state, zeros and step 0 on its first step."""
        state = self.state[p]
        if not state:
            state["step"] = 0
            storage = storage_of(group)
            for name, moment in self.layout(p, group).items():
                state.update(storage.zeros(name, moment, p))
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
