"""The 8-bit quantiser against the maps and codes of others, against plain search, and its error bounds."""

import hashlib

import pytest
import torch
from torch import Tensor

from optimeter.optimizers.core.quantize import SIGNED, UNSIGNED, borders, code_map, dequantize, nearest_code, quantize

CPU = torch.device("cpu")
SIZES = (1, 255, 256, 257, 4095, 4096, 4097)
kinds = pytest.mark.parametrize("kind", [SIGNED, UNSIGNED])


def values(count: int, kind: str, seed: int = 0, spread: float = 0.0) -> Tensor:
    """Gaussian values, squared for the unsigned map; `spread` is the sigma of a log-normal scale for each element."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator) * torch.exp(spread * torch.randn(count, generator=generator))
    return x if kind == SIGNED else x.square()


def plain_codes(x: Tensor, kind: str, block_size: int) -> Tensor:
    """The nearest value of the map, by looking at all 256; for the unsigned map 0 is only for 0."""
    table, codes = code_map(kind, CPU).double(), []
    for block in x.split(block_size):
        scale = block.abs().max()
        quotient = (block / scale if scale > 0 else block).double()
        code = (quotient[:, None] - table).abs().argmin(1)
        codes.append(torch.where((code == 0) & (block > 0), 1, code) if kind == UNSIGNED else code)
    return torch.cat(codes)


@kinds
def test_maps_are_those_of_bitsandbytes_and_torchao_to_the_bit(kind: str) -> None:
    import bitsandbytes.functional
    from torchao.optim.quant_utils import create_dynamic_map

    ours = code_map(kind, CPU)
    assert torch.equal(ours, bitsandbytes.functional.create_dynamic_map(signed=kind == SIGNED))
    assert torch.equal(ours, torch.tensor(create_dynamic_map(signed=kind == SIGNED)))
    digest = {SIGNED: "e732639a65f497b4", UNSIGNED: "305f002cc11278fb"}[kind]
    assert hashlib.sha256(ours.numpy().tobytes()).hexdigest()[:16] == digest


@kinds
def test_the_shortcut_is_the_search(kind: str) -> None:
    edges = borders(kind, CPU)
    around = [edges, *(torch.nextafter(edges, torch.tensor(side)) for side in (-2.0, 2.0)), code_map(kind, CPU)]
    fractions = torch.rand(1 << 18, generator=torch.Generator().manual_seed(0))
    tiny = fractions * 10.0 ** -torch.arange(9).repeat_interleave(1 << 15)[: 1 << 18]
    x = torch.cat([*around, fractions, tiny, torch.tensor([0.0, 1e-45, 1e-38])]).clamp(
        -1.0 if kind == SIGNED else 0.0, 1
    )
    x = torch.cat([x, -x, torch.tensor([-0.0])]) if kind == SIGNED else x
    assert torch.equal(nearest_code(x[None], kind)[0], torch.bucketize(x, edges).to(torch.uint8))


@kinds
@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_codes_are_the_nearest(kind: str, count: int, spread: float) -> None:
    x = values(count, kind, spread=spread)
    codes, scale = quantize(x, kind, 256)
    differs = codes.long() != plain_codes(x, kind, 256)
    assert differs.double().mean() <= 1e-4  # a value between two may go either way
    assert (codes.long() - plain_codes(x, kind, 256)).abs().max() <= 1
    assert scale.shape == (-(-count // 256),)
    largest = 7.0314e-3 if kind == SIGNED else 3.5158e-3  # half the widest gap of the map
    error = (dequantize(codes, scale, kind, 256) - x).abs() / scale.repeat_interleave(256)[:count]
    assert error.max() <= largest


@kinds
def test_codes_are_those_of_torchao(kind: str) -> None:
    from torchao.optim.quant_utils import quantize_8bit_with_qmap

    x = values(64 * 256, kind, seed=1)
    scale = x.view(-1, 256).abs().amax(1)
    codes, theirs = (
        quantize(x, kind, 256)[0],
        quantize_8bit_with_qmap(x.view(-1, 256) / scale[:, None], code_map(kind, CPU)),
    )
    same = codes.view(-1, 256) == theirs
    assert (same | (kind == UNSIGNED) & (theirs == 0)).double().mean() >= 0.9999


@pytest.mark.parametrize(
    ("kind", "absolute", "relative"), [(SIGNED, 0.0088, 0.0160), (UNSIGNED, 0.0070, 0.0095)], ids=[SIGNED, UNSIGNED]
)
def test_errors_stay_within_the_published_bounds(kind: str, absolute: float, relative: float) -> None:
    x = values(1 << 20, kind)
    error = (dequantize(*quantize(x, kind, 256), kind, 256) - x).abs()
    ratio = error / x.abs()
    assert error.mean() < absolute
    assert (ratio.mean() if kind == SIGNED else ratio.median()) < relative


@kinds
@pytest.mark.parametrize("count", SIZES)
def test_zero_stays_zero_and_nothing_else_becomes_it(kind: str, count: int) -> None:
    x = values(count, kind)
    x[::3] = 0
    back = dequantize(*quantize(x, kind, 256), kind, 256)
    assert not back[::3].any()
    if kind == UNSIGNED:
        assert back[x > 0].all()
    assert not dequantize(*quantize(torch.zeros(count), kind, 256), kind, 256).any()


def test_shapes_negative_blocks_and_values_that_are_not_finite() -> None:
    x = -values(600, UNSIGNED).view(2, 3, 100)
    codes, scale = quantize(x, SIGNED, 256)
    assert codes.shape == x.shape
    assert codes.dtype == torch.uint8
    assert (dequantize(codes, scale, SIGNED, 256) - x).abs().max() <= 7.1e-3 * scale.max()
    for bad in (torch.nan, torch.inf):
        x = torch.ones(512)
        x[3] = bad
        back = dequantize(*quantize(x, SIGNED, 256), SIGNED, 256)
        assert back[3].isnan()
        assert torch.equal(back[256:], x[256:])
    assert quantize(torch.empty(0, 3), SIGNED, 256)[0].shape == (0, 3)


@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0, 3.0])
def test_a_heavy_tail_does_not_explode(spread: float) -> None:
    """Scales that differ within a block: nearest rounding of v to 0 makes updates of 10⁵ learning rates."""
    from optimeter.optimizers import AdamW, AdamW8bit

    generator = torch.Generator().manual_seed(0)
    scales = 0.01 * torch.exp(spread * torch.randn(16, 256, generator=generator))
    start = torch.randn(16, 256, generator=generator)
    parameters = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    pair = AdamW8bit(parameters[:1], lr=1e-3), AdamW(parameters[1:], lr=1e-3)
    largest = 0.0
    for _ in range(100):
        g = scales * torch.randn(16, 256, generator=generator)
        before = parameters[0].detach().clone()
        for p, optimizer in zip(parameters, pair, strict=True):
            p.grad = g.clone()
            optimizer.step()
        largest = max(largest, (parameters[0].detach() - before).abs().max().item() / 1e-3)
    assert largest < 10
    apart = (parameters[0] - parameters[1]).abs().mean().item()
    assert apart < (4e-4 if spread == 0 else 8e-3)
