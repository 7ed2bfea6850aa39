"""What an argument of an optimizer must be: a test of its value, and the words for an error."""

from collections.abc import Callable
from typing import Any

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
