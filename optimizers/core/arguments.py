"""The arguments that optimizers share, and what an argument must be: a test of its value, and words for an error."""

from collections.abc import Callable
from typing import Any, TypedDict

from optimeter.optimizers.core.storage import STORAGES


class Basic(TypedDict, total=False):
    """The keyword arguments that every optimizer here takes.

    maximize: ascend. storage: how moments rest between steps ("fp32", "bf16" or "8bit").
    seed: of everything that is drawn (stochastic rounding first of all).
    """

    maximize: bool
    storage: str
    seed: int


class Common(Basic, total=False):
    """And those of the optimizers that have 8-bit storage.

    block_size and min_8bit_size: elements a block, and elements below which a tensor's moments stay in full precision.
    """

    block_size: int
    min_8bit_size: int


Check = tuple[Callable[[Any], bool], str]
Checks = dict[str, Check]  # by the argument's name


def is_fraction(value: Any) -> bool:
    return 0 <= value < 1


def is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and value >= 0


def whole(least: int) -> Check:
    return lambda x: isinstance(x, int) and x >= least, f"a whole number of at least {least}"


def at_least(least: float) -> Check:
    return lambda x: x >= least, f"at least {least:g}"


def above(bound: float) -> Check:
    return lambda x: x > bound, f"above {bound:g}"


def between(least: float, most: float) -> Check:
    return lambda x: least <= x <= most, f"from {least:g} to {most:g}"


def one_of(*choices: str | None) -> Check:
    return lambda x: x in choices, f"one of {', '.join(map(str, choices))}"


FRACTION: Check = (is_fraction, "in [0, 1)")
# What every algorithm asks of the arguments that they share.
CHECKS: Checks = {
    "lr": (is_rate, "a number of at least 0"),
    "betas": (lambda betas: all(map(is_fraction, betas)), "each in [0, 1)"),
    "beta1": (lambda beta: beta is None or is_fraction(beta), f"None or {FRACTION[1]}"),
    "eps": (lambda eps: min(eps) >= 0 if isinstance(eps, tuple) else eps >= 0, "at least 0"),
    "weight_decay": at_least(0),
    "storage": one_of(*STORAGES),
    "block_size": whole(1),
    "min_8bit_size": whole(0),
}
# The `checks` of an algorithm that does not work on whole blocks of 8-bit storage.
NO_8BIT: Checks = {"storage": one_of("fp32", "bf16")}
