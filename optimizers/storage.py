"""How a moment rests between steps, whatever the algorithm: a string argument of every optimizer.

`fp32` keeps it as the rule computes it (fp64 for fp64 parameters) and lets the rule work on it in place. `bf16` halves
the bytes and rounds stochastically: round-to-nearest would freeze a slow moment, since 0.999·v rounds back to v.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

SIGNED, UNSIGNED = "signed", "unsigned"
Key = tuple[int, int, int]  # (seed, the parameter's step, which tensor of the parameter)


class Moment(NamedTuple):
    """What a storage must know of a moment before there is one."""

    kind: str  # SIGNED or UNSIGNED
    shape: torch.Size
    exact: bool = False  # never compressed: a factor, a statistic, anything small that multiplies many elements


class FullPrecision:
    """The moment itself, in the rule's precision; nothing to encode."""

    def zeros(self, name: str, moment: Moment, p: Tensor) -> dict[str, Tensor]:
        """Fresh state entries for a moment of parameter `p`."""
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        return {name: torch.zeros(moment.shape, dtype=dtype, device=p.device)}

    def load(self, state: dict[str, Any], name: str, dtype: torch.dtype) -> Tensor:
        """The moment in `dtype`, to be changed in place."""
        return state[name]

    def store(self, state: dict[str, Any], name: str, value: Tensor, key: Key) -> None:
        """Keep what `load` handed out; here it never left."""


class BFloat16(FullPrecision):
    """Two bytes an element, written with stochastic rounding; exact moments stay in full precision."""

    def zeros(self, name: str, moment: Moment, p: Tensor) -> dict[str, Tensor]:
        if moment.exact:
            return super().zeros(name, moment, p)
        return {name: torch.zeros(moment.shape, dtype=torch.bfloat16, device=p.device)}

    def load(self, state: dict[str, Any], name: str, dtype: torch.dtype) -> Tensor:
        return state[name].to(dtype)

    def store(self, state: dict[str, Any], name: str, value: Tensor, key: Key) -> None:
        if state[name] is not value:
            write_back(state[name], value, key)


STORAGES: dict[str, FullPrecision] = {"fp32": FullPrecision(), "bf16": BFloat16()}


def write_back(resting: Tensor, value: Tensor, key: Key) -> None:
    """Copy `value` into `resting`, stochastically rounded where that is bf16."""
    resting.copy_(rounded(value, resting.dtype, key))


def rounded(value: Tensor, dtype: torch.dtype, key: Key, position: Tensor | None = None) -> Tensor:
    """`value` in `dtype`: stochastically rounded to bf16 (see `stochastic_round`), as torch rounds to the others."""
    if dtype != torch.bfloat16:
        return value.to(dtype)
    if position is None:
        position = torch.arange(value.numel(), dtype=torch.int32, device=value.device).view(value.shape)
    return stochastic_round(value.float(), key, position)


def stochastic_round(x: Tensor, key: Key, position: Tensor) -> Tensor:
    """Round fp32 `x` to bf16, up or down with the probability that makes the mean exact; inf and NaN stay.

    The random bits are a hash of (key, position), `position` being each element's index in its tensor (int32), not a
    stream: a resumed run draws the same ones, and how parameters are grouped does not matter.
    """
    noise = hash32(position, key) & 0xFFFF
    rounded = ((x.contiguous().view(torch.int32) + noise) & -0x10000).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)


def hash32(position: Tensor, key: Key) -> Tensor:
    """32 well-mixed bits for each int32 position: two multiply-xorshift rounds (the constants are Wellons's lowbias32).

    Integer arithmetic that wraps, so that a fused kernel can draw the same bits.
    """
    salt = 0
    for part in key:
        salt = _mix(salt ^ (part & 0xFFFFFFFF))
    x = position ^ _signed(salt)
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ _logical_shift(x, shift)) * _signed(multiplier)
    return x ^ _logical_shift(x, 16)


def _mix(x: int) -> int:
    """The same hash on a Python number, after the step that sends 0 elsewhere."""
    x = (x + 0x9E3779B9) & 0xFFFFFFFF
    x = ((x ^ x >> 16) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ x >> 15) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ x >> 16


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 32) if x >= 1 << 31 else x
