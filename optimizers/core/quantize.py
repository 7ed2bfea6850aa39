"""Blockwise dynamic 8-bit quantisation. Dettmers et al. 2022, arXiv:2110.02861, section 2 and appendix A.

A block of elements is divided by its largest magnitude, its `scale`, and each quotient rests as the number of the
nearest value of a fixed map of 256 values between −1 (or 0) and 1, which is finest near 0. The maps equal those of
bitsandbytes and torchao to the bit. One thing differs: code 0 of the unsigned map, which stands for 0, is kept for
exact zeros. Nearest rounding would send a small second moment there, and the next step would divide by almost nothing.
"""

import sys
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._pytree import tree_map

SIGNED, UNSIGNED = "signed", "unsigned"
CODED = (SIGNED, UNSIGNED)  # those with a map of codes
ZERO_CODE = {SIGNED: 127, UNSIGNED: 0}
CPU = torch.device("cpu")
COARSE = "coarse"  # signed, in 4 bits: 15 evenly spaced levels, two codes a byte
ZERO_PAIR = 0x88
DECADES = 7
SMALLEST = torch.finfo(torch.float32).tiny  # of a scale: a block of zeros must not be divided by 0
UPPER = 1 if sys.byteorder == "little" else 0  # which half of a float holds its upper 16 bits


def constant(build: Callable[[str], Any]) -> Callable[..., Any]:
    """Build once on the CPU, copy once to each device, and keep; real tensors even while fake ones are in force."""

    @cache
    @wraps(build)
    def kept(kind: str, device: torch.device = CPU) -> Any:
        with unset_fake_temporarily():
            return tree_map(lambda x: x.to(device), build(kind) if device == CPU else kept(kind))

    return kept


@constant
def code_map(kind: str) -> Tensor:
    """The values that codes stand for, ascending, (256,) in fp32.

    They are 0, 1 and, in decade i = 0 … 6 from 10⁻⁷ to 1, the middles of 2ⁱ cells, with both signs; unsigned 2ⁱ⁺¹.
    """
    values = [torch.zeros(1), torch.ones(1)]
    for decade in range(DECADES):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (kind == UNSIGNED)) + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade + 1 - DECADES)
        values += [middles] if kind == UNSIGNED else [middles, -middles]
    return torch.cat(values).sort().values


@constant
def borders(kind: str) -> Tensor:
    """The 255 places where the nearest code changes; a value on a border belongs to the code below it."""
    values = code_map(kind)
    middles = (values[:-1] + values[1:]) / 2
    if kind == UNSIGNED:
        middles[0] = 0.0  # whatever is above 0 has code 1 at least
    return middles


@constant
def shortcut(kind: str) -> tuple[Tensor, Tensor]:
    """(code of the smallest value, border) for each pattern of a float's upper 16 bits, (65536,) each.

    The values that share their upper 16 bits are so close that at most one border lies among them: one comparison
    with it gives the code. A binary search, which this replaces on the CPU, takes ten times as long.
    """
    patterns = torch.arange(1 << 16, dtype=torch.int32) << 16
    ends = torch.stack([patterns.view(torch.float32), (patterns | 0xFFFF).view(torch.float32)])
    ends = ends.where(ends.isfinite().all(0), 0.0).sort(dim=0).values  # negative values shrink as their bits grow
    first, last = (torch.bucketize(end, borders(kind), out_int32=True) for end in ends)
    if (last - first).max() > 1:
        raise AssertionError(f"two borders of the {kind} map share their upper 16 bits")
    border = borders(kind)[first.clamp(max=254)]
    return first.to(torch.uint8), border.where(last > first, torch.inf)


def in_caches(x: Tensor) -> bool:
    """Whether operations on `x` run on a CPU, to be chosen for its caches; fake tensors plan for a GPU."""
    return x.is_cpu and not isinstance(x, FakeTensor)


def nearest_code(x: Tensor, kind: str) -> Tensor:
    """The code of each element of fp32 `x` in [−1, 1], shape (blocks, block size), as uint8."""
    if not in_caches(x):
        return torch.bucketize(x, borders(kind, x.device), out_int32=True).to(torch.uint8)
    first, border = shortcut(kind)
    pattern = x.view(torch.uint16)[:, UPPER::2].long()
    return look_up(first, pattern).add_(x > look_up(border, pattern))


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]`` for a vector and a matrix of indices; `gather` is the form of it that uses every core."""
    return torch.gather(table.expand(len(index), -1), 1, index)


def quantize(x: Tensor, kind: str, block_size: int) -> tuple[Tensor, Tensor]:
    """Codes (uint8, the shape of `x`) and the scale of each block of the flattened `x` (fp32); the last may be short.

    A block that holds a NaN or an infinity comes back as NaN.
    """
    blocks = in_blocks(x.float(), block_size)
    scale = blocks.abs().amax(1, keepdim=True).clamp_(min=SMALLEST)
    return as_shaped(nearest_code(blocks / scale, kind), x.shape), scale.view(-1)


def dequantize(codes: Tensor, scale: Tensor, kind: str, block_size: int) -> Tensor:
    """The values, fp32, in the shape of `codes`."""
    blocks = look_up(code_map(kind, codes.device), in_blocks(codes, block_size).long())
    return as_shaped(blocks.mul_(scale.unsqueeze(1)), codes.shape)


def in_blocks(x: Tensor, block_size: int) -> Tensor:
    """`x` flattened and cut into rows, (blocks, block size), the last one filled up with zeros where it is short."""
    short = -x.numel() % block_size
    if short:
        x = torch.cat([x.reshape(-1), x.new_zeros(short)])
    return x.reshape(-1, block_size)


def as_shaped(blocks: Tensor, shape: torch.Size) -> Tensor:
    """What `in_blocks` cut, in its shape again."""
    count = shape.numel()
    return (blocks if blocks.numel() == count else blocks.view(-1)[:count]).view(shape)


def quantize_coarse(x: Tensor, block_size: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of 4 bits, two a byte (uint8, (⌈n/2⌉,)), and each block's scale: 15 even levels from −scale to scale.

    noise: uniform in [0, 1), one for each element of the flattened `x`. It decides which of the two neighbouring
    levels an element takes, so that the mean is exact: at 15 levels nearest rounding would swallow a slow moment.
    """
    blocks = in_blocks(x.float(), block_size)
    scale = blocks.abs().amax(1, keepdim=True).clamp_(min=SMALLEST)
    levels = (blocks / scale).mul_(7).view(-1)[: x.numel()]
    pairs = in_blocks(levels.add_(noise).floor_().clamp_(-7, 7).add_(8).to(torch.uint8), 2)
    return pairs[:, 0] << 4 | pairs[:, 1], scale.view(-1)


def dequantize_coarse(codes: Tensor, scale: Tensor, shape: torch.Size, block_size: int) -> Tensor:
    """The values, fp32, in `shape`."""
    levels = torch.stack([codes >> 4, codes & 15], 1).view(-1)[: shape.numel()].float().sub_(8)
    return as_shaped(in_blocks(levels, block_size) * (scale.unsqueeze(1) / 7), shape)
