"""Automagic_CameAMP: the published numbers, a plain rewrite, bytes in both phases, the mask, and the context."""

import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optimeter import optimizers, workloads
from optimeter.measure.memory.ledger import ledger
from optimeter.optimizers.automagic import lr_mask
from optimeter.optimizers.automagic.context import SKETCH
from tests import references
from tests.cases import cameamp, cameamp_8bit
from tests.trials import train

NAMES = ("Automagic_CameAMP", "Automagic_CameAMP8bit", "Automagic_CameAMP_COptim", "Automagic_CameAMP_COptim8bit")
RATES: dict[str, Any] = {"lr": 1e-3, "min_lr": 1e-4, "max_lr": 1e-2, "lr_bump": 1e-4}
# (came, step, mask[0, 0] of P) → P and b, as computed twice from the published 32-bit class.
PUBLISHED = {
    (True, 1): "0.449713 -0.301120 1.057425 -1.453779 0.798571 0.056860 0.223945 -0.637790",
    (True, 2): "0.345016 -0.384977 1.200252 -1.378678 0.805367 -0.033188 0.078839 -0.688694",
    (True, 4): "0.142113 -0.359313 1.487819 -1.335180 0.752442 -0.182286 0.022513 -0.687737",
    (True, 8): "0.195541 -0.333546 1.517972 -1.345269 0.705413 -0.149750 0.065898 -0.658441",
    (True, 12): "0.179421 -0.354670 1.524103 -1.320983 0.716383 -0.164922 0.042791 -0.683932",
    (False, 12): "0.164179 -0.351241 1.577640 -1.343243 0.694697 -0.168321 0.052347 -0.689052",
}
MASK = {1: 0.001899, 4: 0.002199, 8: 0.002299}


def wave(t: float, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.sin(0.7 * t + 1.3 * torch.arange(int(np.prod(shape)), dtype=torch.float64)).view(shape).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("came", [True, False])
def test_the_published_32_bit_numbers(came: bool, dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.tensor([[0.5, -0.25, 1], [-1.5, 0.75, 0.1]], dtype=dtype))
    b = nn.Parameter(torch.tensor([0.3, -0.6], dtype=dtype))
    optimizer = optimizers.Automagic_CameAMP([p, b], weight_decay=0.1, warmup_steps=8, came=came, **RATES)
    for t in range(1, 13):
        if t == 11:
            optimizer.param_groups[0]["lr"] = 5e-4
        p.grad, b.grad = wave(t, 2, 3, dtype=dtype), wave(t + 0.5, 2, dtype=dtype)
        optimizer.step()
        if (came, t) in PUBLISHED:
            found = torch.cat([p.detach().flatten(), b.detach()]).double()
            expected = torch.tensor([float(x) for x in PUBLISHED[came, t].split()], dtype=torch.float64)
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
        if t in MASK:
            assert optimizer.state[p]["lr_mask"][0, 0].item() == pytest.approx(MASK[t], abs=1e-9)


SHAPES = ((4, 5), (7,), (2, 3, 2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("came", "window", "losses"), [(True, 12, True), (True, 16, False), (False, 8, True)], ids=str)
def test_equals_a_plain_rewrite(name: str, came: bool, window: int, losses: bool) -> None:
    """25 steps of fp64, through the end of the warm-up, with a schedule; 8-bit moments exact, the mask read back."""
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape) for shape in SHAPES]
    parameters = [nn.Parameter(torch.tensor(p)) for p in start]
    context = {"momentum_scales": (1, 3, 7), "context_window": window, "edge_threshold": 0.7}
    optimizer = getattr(optimizers, name)(
        parameters, warmup_steps=14, came=came, weight_decay=0.1, blocksize=8, **RATES, **context
    )
    watched = {"scales": (1, 3, 7), "window": window, "threshold": 0.7} if "COptim" in name else {}
    plain = references.CameAMP(
        start, came=came, W=14, decay=0.1, lr=1.1e-3, bump=1e-4, least=1e-4, most=1e-2, **watched
    )
    multipliers = set()
    for t in range(1, 26):
        lr = optimizer.param_groups[0]["lr"] = 1e-3 * (1 + t / 10 if t < 10 else 2 - t / 25)  # up, then down
        common = rng.normal() if t < 15 else 0.0
        gradients = [common + rng.normal(size=shape) for shape in SHAPES]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = torch.tensor(g)
        loss = 1 / t + 0.1 * rng.normal() if losses else None
        if watched and losses:
            optimizer.report_loss(loss)
        optimizer.step()
        if "8bit" in name:
            plain.bump = lambda i, g: None  # type: ignore[method-assign]
            group = optimizer.param_groups[0]
            plain.mask = [lr_mask.rates(optimizer.state[p], group, torch.float64).numpy() for p in parameters]
        plain.step(gradients, lr, loss)
        if watched:
            assert optimizer.c_optim.compute_contextual_lr_multiplier() == pytest.approx(plain.multiplier, rel=1e-9)
            assert optimizer.c_optim.detect_edge_case() == plain.edge
            multipliers.add(plain.multiplier)
        for p, expected in zip(parameters, plain.p, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-9, atol=1e-11)
    assert not watched or len(multipliers) > 3


def walked(name: str, size: int, steps: int, **arguments: Any) -> float:
    """Bytes a parameter after `steps` steps on a square matrix, the context's own and the code tables left out."""
    p = nn.Parameter(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))
    optimizer = getattr(optimizers, name)([p], warmup_steps=3, **arguments)
    for t in range(steps):
        p.grad = wave(t, size, size, dtype=torch.float32)
        optimizer.step()
    found = ledger(optimizer)
    assert found.by_role.get("context", 0) < 300_000
    return (found.state_bytes - found.by_role.get("context", 0) - found.by_role.get("code_tables", 0)) / p.numel()


FORMULAS = {
    "Automagic_CameAMP": cameamp,
    "Automagic_CameAMP8bit": cameamp_8bit,
    "Automagic_CameAMP_COptim": lambda **phase: cameamp(4, **phase),
    "Automagic_CameAMP_COptim8bit": lambda **phase: cameamp_8bit(4, **phase),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("steps", "warm"), [(2, True), (3, False), (5, False)])
def test_bytes_are_the_formula_in_both_phases(name: str, steps: int, warm: bool) -> None:
    assert walked(name, 64, steps) == FORMULAS[name](warm=warm)(torch.Size((64, 64)))


@pytest.mark.parametrize(("steps", "full", "full_context"), [(2, 20.13, 36.13), (3, 16.0, 32.0)])
def test_shares_of_the_32_bit_forms(steps: int, full: float, full_context: float) -> None:
    plain, small, context, small_context = (walked(name, 1024, steps) for name in NAMES)
    assert plain == pytest.approx(full, abs=0.01)
    assert context == pytest.approx(full_context, abs=0.01)
    assert small <= 0.26 * plain
    assert small_context <= 0.20 * context
    assert small_context <= 0.38 * plain


def test_a_stored_residual_is_not_zero() -> None:
    p = nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    optimizer = optimizers.Automagic_CameAMP8bit([p])
    for t in range(3):
        p.grad = wave(t, 64, 64, dtype=torch.float32)
        optimizer.step()
    state = optimizer.state[p]
    assert state["exp_avg_res"].dtype == state["exp_avg_sq"].dtype == state["exp_avg"].dtype == torch.uint8
    assert (state["exp_avg_res"] > 0).all()
    assert (state["exp_avg_res_scale"] > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_halves_the_step_and_comes_back(name: str) -> None:
    """The frozen mask is not worn down: lr halved thirty times in a row is half the step, and lr again the whole."""
    twins = []
    for scheduled in (False, True):
        p = nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
        optimizer = getattr(optimizers, name)([p], warmup_steps=4, **RATES)
        for t in range(40):
            p.grad = wave(t, 64, 64, dtype=torch.float32)
            if scheduled and t >= 6:
                optimizer.param_groups[0]["lr"] = 1e-3 if t == 39 else 5e-4
            before = p.detach().clone()
            optimizer.step()
            if t in (20, 39):
                twins.append((p.detach() - before).norm().item())
    assert twins[2] == pytest.approx(twins[0] / 2, rel=1e-3)
    assert twins[3] == pytest.approx(twins[1], rel=1e-3)


@pytest.mark.parametrize("storage", ["fp32", "8bit"])
def test_the_mask_rises_by_its_bumps_on_average(storage: str) -> None:
    """From 2e-4 a hundred bumps of 3e-6 make 5e-4; an element whose sign flips sinks to min_lr."""
    steady, flips = nn.Parameter(torch.ones(4096)), nn.Parameter(torch.ones(4096))
    optimizer = optimizers.Automagic_CameAMP([steady, flips], lr=2e-4, warmup_steps=200, storage=storage)
    for state in (optimizer.start(p, optimizer.param_groups[0]) for p in (steady, flips)):
        state["lr_peak"] = 2e-4  # the mask alone, without the jump of the first step
    for t in range(100):
        steady.grad, flips.grad = -torch.ones(4096), torch.full((4096,), 1.0 if t % 2 else -1.0)
        optimizer.step()
    group = optimizer.param_groups[0]
    rates = [lr_mask.rates(optimizer.state[p], group, torch.float32).double() for p in (steady, flips)]
    assert rates[0].mean().item() == pytest.approx(5e-4, rel=5e-3)
    assert rates[1].mean().item() == pytest.approx(1e-7, abs=5e-7)
    assert optimizer.state[steady]["lr_mask"].dtype == (torch.uint8 if storage == "8bit" else torch.float32)
    assert optimizer.average_lr()[0] == pytest.approx(2.5e-4, rel=1e-2)


@pytest.mark.parametrize("shape", [(), (0,), (8,), (3, 5)], ids=str)
def test_signs_are_packed_eight_a_byte(shape: tuple[int, ...]) -> None:
    bits = wave(1, *shape) > 0
    packed = lr_mask.pack(bits)
    assert (packed.dtype, packed.numel()) == (torch.uint8, -(-bits.numel() // 8))
    assert torch.equal(lr_mask.unpack(packed, bits.shape), bits)


def watch(
    gradients: list[float], losses: list[float] | None = None, size: int = 6000, **arguments: Any
) -> tuple[Any, Tensor]:
    """The C-Optim optimizer after steps with gradient ⟨factor⟩ · a fixed direction + noise, and its parameter."""
    p = nn.Parameter(torch.ones(size))
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(size, generator=generator)
    arguments = {"lr": 1e-4, "context_window": 40, "warmup_steps": 10} | arguments
    optimizer = optimizers.Automagic_CameAMP_COptim([p], **arguments)
    for t, factor in enumerate(gradients):
        p.grad = factor * direction + 0.5 * torch.randn(size, generator=generator)
        if losses:
            optimizer.report_loss(losses[t])
        optimizer.step()
    return optimizer, p.detach()


CALM = [1.0 + 0.01 * (-1) ** t for t in range(60)]
TURNING = [1.0] * 40 + [(-1.0) ** t for t in range(20)]


def test_consistency_is_the_cosine_of_directions() -> None:
    """1 for one direction, −1 for one that turns each step, 0 for noise: by sample and, for few elements, exactly."""
    for size in (100, 20_000):
        for factors, expected in (([1e6] * 12, 1.0), ([1e6, -1e6] * 6, -1.0), ([0.0] * 12, 0.0)):
            optimizer, _ = watch(factors, size=size)
            assert optimizer.c_optim.compute_gradient_consistency() == pytest.approx(expected, abs=0.1)
    assert watch([1.0])[0].c_optim.compute_gradient_consistency() == 1.0


def test_the_sample_is_an_estimate_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (nn.Parameter(torch.ones(n)) for n in (50_000, 300))
    context = optimizers.Automagic_CameAMP_COptim([a, b]).c_optim
    found = []
    gradients = [[torch.randn(p.shape, generator=generator) for p in (a, b)] for _ in range(2)]
    gradients[1] = [0.5 * g + h for g, h in zip(gradients[0], gradients[1], strict=True)]
    for pair in gradients:
        a.grad, b.grad = pair
        found.append(context.direction([a, b], 0))
    assert SKETCH <= len(found[0]) <= SKETCH + 2
    whole = [torch.cat(pair) for pair in gradients]
    expected = torch.cosine_similarity(whole[0], whole[1], dim=0).item()
    assert found[0].dot(found[1]).item() == pytest.approx(expected, abs=0.05)


def test_trouble_is_an_edge_and_lowers_the_rate() -> None:
    for gradients, losses, edge in (
        (CALM, None, False),
        (TURNING, None, True),
        (CALM, [1.0] * 60, False),
        (CALM, [1.0] * 50 + [5.0] * 10, True),
        (CALM, [1.0] * 59 + [torch.nan], False),
        (TURNING, [60.0 - t for t in range(60)], False),  # the losses fall faster than the directions turn
    ):
        context = watch(gradients, losses)[0].c_optim
        assert context.detect_edge_case() is edge, (gradients, losses)
        multiplier = context.compute_contextual_lr_multiplier()
        assert 0.1 <= multiplier <= (0.9 if edge else 2)
    falling = watch(CALM, [60.0 - t for t in range(60)])[0].c_optim
    assert falling.compute_contextual_lr_multiplier() > 1.1
    assert 0 < falling.compute_loss_stability() < 1
    rising = watch(CALM, [1.0 * t for t in range(60)], maximize=True)[0].c_optim  # which is what it should do
    assert rising.compute_contextual_lr_multiplier() > 1.1
    assert watch([1.0] * 12)[0].c_optim.detect_edge_case() is False  # too early to tell


@pytest.mark.parametrize(
    "changed",
    [{"context_window": 24}, {"edge_threshold": 0.6}, {"adaptation_rate": 0.3}, {"momentum_scales": (1, 3)}],
    ids=lambda changed: next(iter(changed)),
)
def test_each_argument_of_the_context_changes_the_weights(changed: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    losses = [float(x) for x in 1 + 0.1 * rng.normal(size=60)]
    usual, other = (watch(TURNING, losses, **arguments)[1] for arguments in ({}, changed))
    assert not torch.equal(usual, other)


def test_the_edge_threshold_is_a_false_alarms_rate() -> None:
    """On noise alone, 0.6 cries wolf often, 0.95 seldom, 1 never and 0 always."""
    alarms = []
    for threshold in (0.0, 0.6, 0.95, 1.0):
        p, count = nn.Parameter(torch.ones(500)), 0
        optimizer = optimizers.Automagic_CameAMP_COptim([p], context_window=40, edge_threshold=threshold)
        generator = torch.Generator().manual_seed(0)
        for t in range(200):
            p.grad = torch.randn(500, generator=generator)
            optimizer.step()
            count += t >= 40 and optimizer.c_optim.detect_edge_case()
        alarms.append(count / 160)
    assert alarms[0] == 1
    assert alarms[3] == 0
    assert 0.2 < alarms[1] < 0.6
    assert 0 < alarms[2] < 0.15


def test_adaptation_rate_0_leaves_the_multiplier_at_1_and_1_follows_at_once() -> None:
    losses = [1.0] * 50 + [5.0] * 10
    assert watch(CALM, losses, adaptation_rate=0.0)[0].c_optim.compute_contextual_lr_multiplier() == 1
    followed = watch(CALM, losses, adaptation_rate=1.0)[0].c_optim
    expected = 0.5 + 0.3 * followed.compute_gradient_consistency()
    assert followed.compute_contextual_lr_multiplier() == pytest.approx(expected, rel=1e-5)


def test_blocksize_changes_codes_and_bytes() -> None:
    assert walked("Automagic_CameAMP8bit", 64, 3, blocksize=64) > walked("Automagic_CameAMP8bit", 64, 3)
    results = []
    for blocksize in (64, 4096):
        p = nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
        optimizer = optimizers.Automagic_CameAMP8bit([{"params": [p], "blocksize": blocksize}], lr=1e-3)
        for t in range(3):
            p.grad = wave(t, 64, 64, dtype=torch.float32) * torch.linspace(0.01, 1, 64)
            optimizer.step()
        results.append(p.detach())
    assert not torch.equal(*results)


def test_a_missing_loss_is_told_once_and_a_closures_is_heard() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = optimizers.Automagic_CameAMP_COptim8bit([p])
    p.grad = torch.ones(3)
    with pytest.warns(UserWarning, match="report_loss") as told:
        optimizer.step()
        optimizer.step()
    assert len(told) == 1
    assert told[0].filename == __file__
    silent = optimizers.Automagic_CameAMP_COptim([p])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (2.0, torch.tensor([3.0], requires_grad=True)):
            silent.step(lambda value=value: value)
        silent.report_loss(torch.tensor(4.0))
        silent.step()
    assert silent.c_optim.losses[-3:].tolist() == [2, 3, 4]
    assert not silent.c_optim.losses.requires_grad
    with pytest.raises(ValueError, match="context=True"):
        optimizers.Automagic_CameAMP([p]).report_loss(1.0)


def test_the_run_loop_reports_every_loss() -> None:
    built = []

    def build(named: Any) -> torch.optim.Optimizer:
        built.append(optimizers.Automagic_CameAMP_COptim([p for _, p in named]))
        return built[-1]

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(workloads.MLP(steps=30, batch=8), build, accumulate=2)
    assert built[0].c_optim.losses_seen == 31  # and one of the step that is watched after the run
    assert not optimizers.Automagic_CameAMP([nn.Parameter(torch.ones(1))]).wants_loss


@pytest.mark.parametrize("name", NAMES[2:])
def test_the_context_resumes_to_the_bit(name: str) -> None:
    """Stopped at any step of a stretch with trouble in it, through a file read with weights_only."""

    def run(stop: int | None) -> tuple[Tensor, dict[str, Any]]:
        p = nn.Parameter(torch.randn(80, 80, generator=torch.Generator().manual_seed(0)))
        optimizer = getattr(optimizers, name)([p], context_window=12, lr=1e-3, warmup_steps=20)
        for t in range(30):
            if t == stop:
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                file.seek(0)
                optimizer = getattr(optimizers, name)([p], context_window=12, lr=1e-3, warmup_steps=20)
                optimizer.load_state_dict(torch.load(file, weights_only=True))
            generator = torch.Generator().manual_seed(t)
            p.grad = torch.randn(80, 80, generator=generator) + (t < 18)
            optimizer.report_loss(1.0 + t % 3)
            optimizer.step()
        return p.detach(), optimizer.state_dict()["context"]

    whole, context = run(None)
    assert context["multiplier"] != 1
    for stop in (1, 15, 22):
        resumed, after = run(stop)
        assert torch.equal(resumed, whole)
        assert all(torch.equal(torch.as_tensor(after[key]), torch.as_tensor(context[key])) for key in context)


def test_bad_arguments_are_refused() -> None:
    p = nn.Parameter(torch.ones(2))
    bad: list[tuple[dict[str, Any], str]] = [
        ({"min_lr": 1.0}, "max_lr must be at least min_lr"),
        ({"momentum_scales": [1, 1]}, "momentum_scales"),
        ({"edge_threshold": 1.5}, "edge_threshold"),
        ({"betas": (0.9, 0.99)}, "betas must be three"),
        ({"context_window": 1}, "context_window"),
    ]
    for arguments, words in bad:
        with pytest.raises(ValueError, match=words):
            optimizers.Automagic_CameAMP_COptim([p], **arguments)
    for unknown in ({"block_size": 64}, {"momentum": 0.9}):
        with pytest.raises(TypeError, match=next(iter(unknown))):
            optimizers.Automagic_CameAMP([p], **unknown)


def test_storage_and_context_are_two_arguments_of_one_family(capsys: pytest.CaptureFixture) -> None:
    results = []
    for name, arguments in (
        ("Automagic_CameAMP_COptim8bit", {}),
        ("Automagic_CameAMP", {"storage": "8bit", "context": True, "verbose": True}),
    ):
        p = nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
        optimizer = getattr(optimizers, name)([p], lr=1e-3, **arguments)
        for t in range(4):
            p.grad = wave(t, 64, 64, dtype=torch.float32)
            optimizer.step()
        results.append(p.detach())
    assert torch.equal(*results)
    assert "4,096 elements, moments of 100% in 8 bits, context on" in capsys.readouterr().out


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10])
def test_with_the_context_the_step_is_free_of_the_gradients_scale(scale: float) -> None:
    results = []
    for factor in (1.0, scale):
        p = nn.Parameter(torch.randn(9, 7, generator=torch.Generator().manual_seed(0)).double())
        optimizer = optimizers.Automagic_CameAMP_COptim([p], lr=1e-3, warmup_steps=6, context_window=4)
        for t in range(12):
            p.grad = factor * torch.randn(9, 7, generator=torch.Generator().manual_seed(t)).double()
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def test_one_element_alone_still_moves() -> None:
    p = nn.Parameter(torch.tensor([3.0]))
    optimizer = optimizers.Automagic_CameAMP([p], lr=1e-3)
    for _ in range(5):
        p.grad = torch.ones(1)
        optimizer.step()
    assert p.item() < 2.99


@pytest.mark.parametrize("name", NAMES)
def test_a_group_of_several_dtypes_and_a_group_that_comes_later(name: str) -> None:
    dtypes = (torch.bfloat16, torch.float32, torch.float64)
    parameters = [nn.Parameter(torch.ones(3000, dtype=dtype)) for dtype in dtypes]
    optimizer = getattr(optimizers, name)(parameters[:2], lr=1e-2)
    for step in range(4):
        if step == 2:
            optimizer.add_param_group({"params": parameters[2:], "lr": 1e-2})
        for p in parameters[: 2 + step // 2]:
            p.grad = wave(step, 3000, dtype=p.dtype)
        optimizer.step()
    assert all((p != 1).any() and p.isfinite().all() for p in parameters)


def test_the_end_of_the_warm_up_may_be_moved() -> None:
    p = nn.Parameter(torch.ones(6, 5))
    optimizer = optimizers.Automagic_CameAMP([p], lr=1e-3, warmup_steps=10)
    for step in range(8):
        optimizer.param_groups[0]["warmup_steps"] = 10 if step < 3 else 3 if step < 5 else 100
        p.grad = wave(step, 6, 5, dtype=torch.float32)
        optimizer.step()
        assert ("polarity" in optimizer.state[p]) == ("alignment" in optimizer.state[p]) == (step < 3)
    assert p.isfinite().all()
