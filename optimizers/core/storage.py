"""How a moment rests between steps, whatever the algorithm: a string argument of every optimizer.

`fp32` keeps it as the rule computes it (fp64 for fp64 parameters) and lets the rule work on it in place. `bf16` halves
the bytes and rounds stochastically: round-to-nearest would freeze a slow moment, since 0.999·v rounds back to v.
`8bit` keeps a code an element and a scale a block (see `optimizers/core/quantize.py`): a quarter of the bytes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optimeter.optimizers.core.quantize import (
    COARSE,
    SIGNED,
    UNSIGNED,
    ZERO_CODE,
    ZERO_PAIR,
    dequantize,
    dequantize_coarse,
    quantize,
    quantize_coarse,
)

__all__ = ["COARSE", "SIGNED", "UNSIGNED", "WHOLE", "Key", "Moment", "storage_of"]

SCALE = "_scale"  # what a state key ends in that holds the scales of 8-bit codes
WHOLE = slice(0, None)
Key = tuple[int, int, int]  # (seed, the parameter's step, which tensor of the parameter)


class Moment(NamedTuple):
    """What a storage must know of a moment before there is one."""

    kind: str  # SIGNED, UNSIGNED or COARSE: which codes `8bit` gives it
    shape: torch.Size
    exact: bool = False  # never compressed: a factor, a statistic, anything small that multiplies many elements
    read_only: bool = False  # the rule does not change it: not written back, since 8 bits would round it once more


class FullPrecision:
    """The moment itself, in the rule's precision; nothing to encode."""

    def zeros(self, name: str, moment: Moment, p: Tensor) -> dict[str, Tensor]:
        """Fresh state entries for a moment of parameter `p`."""
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        return {name: torch.zeros(moment.shape, dtype=dtype, device=p.device)}

    def load(self, state: dict[str, Any], name: str, moment: Moment, dtype: torch.dtype, part: slice = WHOLE) -> Tensor:
        """The moment in `dtype`, or a flat part of it, to be changed in place."""
        return cut(state[name], part)

    def store(
        self, state: dict[str, Any], name: str, moment: Moment, value: Tensor, key: Key, part: slice = WHOLE
    ) -> None:
        """Keep what `load` handed out; here it never left."""


class BFloat16(FullPrecision):
    """Two bytes an element, written with stochastic rounding; exact moments stay in full precision."""

    def zeros(self, name: str, moment: Moment, p: Tensor) -> dict[str, Tensor]:
        if moment.exact:
            return super().zeros(name, moment, p)
        return {name: torch.zeros(moment.shape, dtype=torch.bfloat16, device=p.device)}

    def load(self, state: dict[str, Any], name: str, moment: Moment, dtype: torch.dtype, part: slice = WHOLE) -> Tensor:
        return cut(state[name], part).to(dtype)

    def store(
        self, state: dict[str, Any], name: str, moment: Moment, value: Tensor, key: Key, part: slice = WHOLE
    ) -> None:
        if state[name].dtype == torch.bfloat16:
            write_back(cut(state[name], part), value, key, part.start)


class EightBits(FullPrecision):
    """1 + 4/block_size bytes an element; exact moments and tensors too small for a block's sake stay in full precision.

    `<name>` holds the codes, of the moment's shape, and `<name>_scale` one fp32 a block of the flattened moment.
    Parts begin and end between blocks. A COARSE moment takes half a byte an element; it is worked on as a whole.
    """

    def __init__(self, block_size: int, min_8bit_size: int) -> None:
        self.block_size, self.min_8bit_size = block_size, min_8bit_size

    def zeros(self, name: str, moment: Moment, p: Tensor) -> dict[str, Tensor]:
        if moment.exact or moment.shape.numel() < self.min_8bit_size:
            return super().zeros(name, moment, p)
        count = moment.shape.numel()
        blocks = -(-count // self.block_size)
        if moment.kind == COARSE:
            codes = torch.full((-(-count // 2),), ZERO_PAIR, dtype=torch.uint8, device=p.device)
        else:
            codes = torch.full(moment.shape, ZERO_CODE[moment.kind], dtype=torch.uint8, device=p.device)
        return {name: codes, name + SCALE: torch.zeros(blocks, dtype=torch.float32, device=p.device)}

    def load(self, state: dict[str, Any], name: str, moment: Moment, dtype: torch.dtype, part: slice = WHOLE) -> Tensor:
        codes, scale = cut(state[name], part), state.get(name + SCALE)
        if scale is None:
            return codes
        if moment.kind == COARSE:
            return dequantize_coarse(codes, scale, moment.shape, self.block_size).to(dtype)
        return dequantize(codes, cut(scale, self.blocks(part)), moment.kind, self.block_size).to(dtype)

    def store(
        self, state: dict[str, Any], name: str, moment: Moment, value: Tensor, key: Key, part: slice = WHOLE
    ) -> None:
        if name + SCALE in state and moment.kind == COARSE:
            noise = uniform(value.numel(), key, value.device)
            state[name], state[name + SCALE] = quantize_coarse(value, self.block_size, noise)
        elif name + SCALE in state:
            codes, scale = quantize(value, moment.kind, self.block_size)
            cut(state[name], part).copy_(codes)
            cut(state[name + SCALE], self.blocks(part)).copy_(scale)

    def blocks(self, part: slice) -> slice:
        """The blocks that a part of the elements covers."""
        return part if part == WHOLE else slice(part.start // self.block_size, -(-part.stop // self.block_size))


STORAGES = ("fp32", "bf16", "8bit")


def storage_of(group: Mapping[str, Any]) -> FullPrecision:
    """The storage that a parameter group asks for."""
    if group["storage"] == "8bit":
        return EightBits(group["block_size"], group["min_8bit_size"])
    return BFLOAT16 if group["storage"] == "bf16" else FULL_PRECISION


FULL_PRECISION, BFLOAT16 = FullPrecision(), BFloat16()


def cut(x: Tensor, part: slice) -> Tensor:
    """`x` itself, or a part of the flattened (contiguous) `x`; a view in both cases."""
    if part == WHOLE:
        return x
    return x.as_strided((part.stop - part.start,), (1,), x.storage_offset() + part.start)  # one operation, not two


def write_back(resting: Tensor, value: Tensor, key: Key, begin: int = 0) -> None:
    """Copy `value`, its first element being at `begin`, into `resting`; stochastically rounded if that is bf16."""
    resting.copy_(rounded(value, resting.dtype, key, begin=begin))


def rounded(value: Tensor, dtype: torch.dtype, key: Key, position: Tensor | None = None, begin: int = 0) -> Tensor:
    """`value` in `dtype`: stochastically rounded to bf16 (see `stochastic_round`), as torch rounds to the others."""
    if dtype != torch.bfloat16:
        return value.to(dtype)
    if position is None:
        position = torch.arange(begin, begin + value.numel(), dtype=torch.int32, device=value.device).view(value.shape)
    return stochastic_round(value.float(), key, position)


def stochastic_round(x: Tensor, key: Key, position: Tensor) -> Tensor:
    """Round fp32 `x` to bf16, up or down with the probability that makes the mean exact; inf and NaN stay.

    The random bits are a hash of (key, position), `position` being each element's index in its tensor (int32), not a
    stream: a resumed run draws the same ones, and how parameters are grouped does not matter.
    """
    noise = hash32(position, key) & 0xFFFF
    rounded = ((x.contiguous().view(torch.int32) + noise) & -0x10000).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)


def uniform(count: int, key: Key, device: torch.device) -> Tensor:
    """`count` numbers from [0, 1), fp32, the same ones for the same key."""
    bits = hash32(torch.arange(count, dtype=torch.int32, device=device), key)
    return (bits & 0xFFFFFF).float().mul_(2.0**-24)


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
