"""What a measure's arguments may be: each check raises ValueError in one line, as a measure's constructor must."""

import math
from typing import Any

AUTO = "auto"


def require(name: str, value: Any, accepted: bool, words: str) -> None:
    """Raise ValueError unless `accepted`: "measure.delta must be a number above 0 and below 1, not 2"."""
    if not accepted:
        raise ValueError(f"measure.{name} must be {words}, not {value!r}")


def is_whole(value: Any, least: int) -> bool:
    """Whether it is an int of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_positive(value: Any) -> bool:
    """Whether it is a finite number above 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def check_whole(name: str, value: Any, least: int) -> None:
    """A count."""
    require(name, value, is_whole(value, least), f"a whole number of at least {least}")


def check_positive(name: str, value: Any) -> None:
    """A duration, a width."""
    require(name, value, is_positive(value), "a number above 0")


def check_share(name: str, value: Any) -> None:
    """A share of one."""
    require(name, value, is_positive(value) and value < 1, "a number above 0 and below 1")


def check_sampling(name: str, value: Any) -> None:
    """Steps between two looks."""
    require(name, value, value == AUTO or is_whole(value, 1), "auto or a whole number of at least 1")
