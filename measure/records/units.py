"""Bytes and seconds in a line of text."""

from collections.abc import Mapping

BYTES = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0}
SECONDS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}


def scaled(value: float, units: Mapping[str, float]) -> str:
    """A number in the largest unit of which there is one: "36.2 MB"."""
    fitting = (unit for unit, size in units.items() if value >= size)
    unit = next(fitting, list(units)[-1])
    return f"{value / units[unit]:.4g} {unit}"
