"""How moments rest: rounding that is right on average, keyed so that resuming and grouping change nothing."""

import pytest
import torch

from optimeter.optimizers.core.storage import (
    COARSE,
    SIGNED,
    STORAGES,
    UNSIGNED,
    WHOLE,
    Moment,
    hash32,
    rounded,
    stochastic_round,
    storage_of,
)


def positions(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int32)


@pytest.mark.parametrize("value", [1.001, -1.001, 3.14159, 1e-30, -7e20, 1.0039])
def test_stochastic_rounding_is_right_on_average(value: float) -> None:
    x = torch.full((1 << 18,), value)
    y = stochastic_round(x, (0, 1, 0), positions(x.numel()))
    neighbours = y.unique().double()
    assert len(neighbours) <= 2
    gap = (neighbours.max() - neighbours.min()).item()
    assert y.double().mean().item() == pytest.approx(x[0].double().item(), abs=max(0.005 * gap, 1e-12 * abs(value)))


def test_what_bf16_can_hold_stays() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -2.5, 2.0**-126, torch.inf, -torch.inf])
    y = stochastic_round(x, (3, 4, 5), positions(len(x)))
    assert torch.equal(y.float(), x)
    assert torch.equal(y.signbit(), x.signbit())
    assert stochastic_round(torch.tensor([torch.nan]), (0, 0, 0), positions(1)).isnan().all()


def test_a_slow_moment_decays_where_nearest_rounding_freezes() -> None:
    nearest = stochastic = torch.ones(1 << 12, dtype=torch.bfloat16)
    for step in range(1000):
        nearest = (nearest.float() * 0.999).bfloat16()
        stochastic = rounded(stochastic.float() * 0.999, torch.bfloat16, (0, step, 1))
    assert (nearest == 1).all()
    assert stochastic.double().mean().item() == pytest.approx(0.999**1000, rel=0.01)


def test_the_noise_is_uniform_and_differs_by_seed_step_tensor_and_position() -> None:
    count = 1 << 20
    bits = hash32(positions(count), (0, 1, 2))
    low = (bits & 0xFFFF).double()
    assert low.mean().item() == pytest.approx(0x7FFF, rel=2e-3)
    assert low.var().item() == pytest.approx((1 << 32) / 12, rel=1e-2)
    assert (low[1:] - low.mean()).mul(low[:-1] - low.mean()).mean().abs() < 0.01 * low.var()
    for key in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        other = (hash32(positions(count), key) & 0xFFFF).double()
        assert (other == low).double().mean() < 1e-4
        assert torch.corrcoef(torch.stack([low, other]))[0, 1].abs() < 0.01
    assert len(bits.unique()) > 0.999 * count


def test_rows_draw_what_the_whole_tensor_draws() -> None:
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    whole = rounded(x, torch.bfloat16, (1, 2, 3))
    rows = torch.tensor([7, 2])
    position = (rows[:, None] * 6 + torch.arange(6)).int()
    assert torch.equal(rounded(x[rows], torch.bfloat16, (1, 2, 3), position), whole[rows])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("part", [WHOLE, slice(8, 13)], ids=["whole", "part"])
def test_a_stored_moment_comes_back(storage: str, exact: bool, part: slice) -> None:
    p = torch.zeros(5, 3)
    kept = storage_of({"storage": storage, "block_size": 4, "min_8bit_size": 0})
    moment = Moment(UNSIGNED, p.shape, exact)
    state = kept.zeros("v", moment, p)
    assert not kept.load(state, "v", moment, torch.float32).any()
    value = kept.load(state, "v", moment, torch.float32, part)
    value.fill_(0.75)
    kept.store(state, "v", moment, value, (0, 1, 1), part)
    expected = torch.zeros(15)
    expected[part] = 0.75
    assert torch.equal(kept.load(state, "v", moment, torch.float32), expected.view(5, 3))
    resting = {"bf16": torch.bfloat16, "8bit": torch.uint8}.get(storage, torch.float32)
    assert state["v"].dtype == (torch.float32 if exact else resting)


def test_small_tensors_stay_exact() -> None:
    kept = storage_of({"storage": "8bit", "block_size": 256, "min_8bit_size": 4096})
    for count, names in ((4095, {"m"}), (4096, {"m", "m_scale"})):
        p = torch.zeros(count)
        assert set(kept.zeros("m", Moment(SIGNED, p.shape), p)) == names


@pytest.mark.parametrize("count", [0, 1, 7, 8, 31])
def test_a_coarse_moment_takes_half_a_byte_and_is_right_on_average(count: int) -> None:
    kept = storage_of({"storage": "8bit", "block_size": 5, "min_8bit_size": 0})
    p = torch.zeros(count)
    moment = Moment(COARSE, p.shape)
    state = kept.zeros("m", moment, p)
    assert state["m"].numel() == -(-count // 2)
    assert state["m_scale"].numel() == -(-count // 5)
    assert not kept.load(state, "m", moment, torch.float32).any()
    x = torch.linspace(-1, 0.3, count)
    total = torch.zeros(count)
    for step in range(2000):
        kept.store(state, "m", moment, x, (0, step, 1))
        y = kept.load(state, "m", moment, torch.float32)
        assert ((y - x).abs() <= 1 / 7 + 1e-6).all()
        total += y / 2000
    torch.testing.assert_close(total, x, rtol=0, atol=0.01)


def test_a_slow_coarse_moment_decays_and_a_nan_stays_in_its_block() -> None:
    kept = storage_of({"storage": "8bit", "block_size": 1024, "min_8bit_size": 0})
    p = torch.zeros(4096)
    moment = Moment(COARSE, p.shape)
    state = kept.zeros("m", moment, p)
    value = torch.full((4096,), 0.5)
    value[::1024] = 1.0  # holds the scale, so that 0.5 lies between two levels
    for step in range(50):
        kept.store(state, "m", moment, value, (0, step, 1))
        value = kept.load(state, "m", moment, torch.float32) * 0.99
        value[::1024] = 1.0
    rest = torch.ones(4096, dtype=torch.bool)
    rest[::1024] = False
    assert value[rest].mean().item() == pytest.approx(0.5 * 0.99**50, rel=0.03)
    value[5] = torch.nan
    kept.store(state, "m", moment, value, (0, 51, 1))
    assert kept.load(state, "m", moment, torch.float32).view(4, -1).isfinite().all(1).tolist() == [False, *[True] * 3]
