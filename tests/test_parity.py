"""Every optimizer against others' code and against plain formulas."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from optimeter import optimizers
from tests import references
from tests.cases import CASES, HF_ADAFACTOR, SHAMPOO_1802_09568, Case, fill_gradients, parameters_for, theirs, train

TORCH_OPTIMIZERS_LAMB = {"bias_correction": False, "phi": (None, 10.0)}
# Beside the rows of `CASES` that bring an oracle: other arguments, and other oracles.
ORACLES = [
    ("Adam", {"weight_decay": 0.1}, theirs("torch.optim.Adam", weight_decay=0.1)),
    ("Adam", {"amsgrad": True, "maximize": True}, theirs("torch.optim.Adam", amsgrad=True, maximize=True)),
    ("AdamW", {"weight_decay": 0.3, "amsgrad": True}, theirs("torch.optim.AdamW", weight_decay=0.3, amsgrad=True)),
    ("AdamW", {"maximize": True}, theirs("torch.optim.AdamW", maximize=True)),
    (
        "AdamW",
        {"betas": (0.5, 0.8), "eps": 1e-3},
        theirs("torch.optim.AdamW", betas=(0.5, 0.8), eps=1e-3, fused=True),
    ),
    ("Adafactor", {}, theirs("torch.optim.Adafactor")),
    ("Adafactor", {"maximize": True}, theirs("torch.optim.Adafactor", maximize=True)),
    (
        "Shampoo",
        SHAMPOO_1802_09568 | {"lr": 1e-2, "matrix_eps": 1e-6},
        theirs("pytorch_optimizer.Shampoo", lr=1e-2, matrix_eps=1e-6),
    ),
    *[
        ("Adafactor", arguments, theirs(HF_ADAFACTOR, **arguments))
        for arguments in (
            {"warmup_init": True, "beta1": 0.9},
            {"warmup_init": True, "weight_decay": 0.1, "clip_threshold": 0.5, "decay_rate": -0.6},
            {"lr": 1e-3, "scale_parameter": False, "relative_step": False},
            {"lr": 1e-3, "scale_parameter": True, "relative_step": False, "beta1": 0.8, "weight_decay": 0.01},
        )
    ],
    ("CAME", {"lr": 1e-3, "weight_decay": 0.1}, theirs("came_pytorch.CAME", lr=1e-3, weight_decay=0.1)),
    *[
        ("CAME", {"lr": 1e-3, **arguments}, theirs(path, lr=1e-3, **arguments, **only_theirs))
        for arguments in ({}, {"betas": (0.5, 0.9, 0.95), "clip_threshold": 0.3})
        for path, only_theirs in (("came_pytorch.CAME", {}), ("pytorch_optimizer.CAME", {"foreach": False}))
    ],
    ("LAMB", TORCH_OPTIMIZERS_LAMB, theirs("torch_optimizer.Lamb", weight_decay=0.01)),
    ("LAMB", TORCH_OPTIMIZERS_LAMB | {"weight_decay": 0.0}, theirs("torch_optimizer.Lamb")),
]
COMPARED = [case for case in CASES if case.oracle] + [Case(name, own, oracle=oracle) for name, own, oracle in ORACLES]


@pytest.mark.parametrize("case", COMPARED, ids=str)
def test_equals_an_independent_implementation(case: Case) -> None:
    assert case.oracle
    results = []
    for build in (case.build, case.oracle):
        parameters = parameters_for(case, torch.float64)
        train(case, 25, parameters=parameters, optimizer=build(parameters))
        results.append(torch.cat([p.detach().flatten() for p in parameters]))
    start = torch.cat([p.detach().flatten() for p in parameters_for(case, torch.float64)])
    assert (results[0] - results[1]).abs().max() < 1e-10 * (results[1] - start).abs().max()


def test_sparse_adam_equals_torchs() -> None:
    case = Case("SparseAdam", sparse=True)
    ours, theirs = parameters_for(case), parameters_for(case)
    train(case, 25, parameters=ours)
    train(case, 25, parameters=theirs, optimizer=torch.optim.SparseAdam(theirs))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-7)


FORMULAS: list[tuple[str, Callable[..., np.ndarray]]] = [
    ("Adam", lambda p, gradients: references.adam(p, gradients, 1e-3)),
    ("AdamW", lambda p, gradients: references.adam(p, gradients, 1e-3, decay=1e-2)),
    ("Adafactor", references.adafactor),
    ("CAME", references.came),
    ("LAMB", references.lamb),
]


@pytest.mark.parametrize("shape", [(5, 7), (6,)], ids=str)
@pytest.mark.parametrize(("name", "formula"), FORMULAS, ids=[name for name, _ in FORMULAS])
def test_equals_the_plain_formula(name: str, formula: Callable[..., np.ndarray], shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=shape), [rng.normal(size=shape) for _ in range(12)]
    p = nn.Parameter(torch.tensor(start))
    optimizer = getattr(optimizers, name)([p])
    for g in gradients:
        p.grad = torch.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), formula(start, gradients), rtol=1e-12, atol=1e-14)


LAMB_VARIANTS: list[dict[str, Any]] = [
    {"bias_correction": False},
    {"grad_averaging": False},
    {"weight_decay": 0.3, "adam_w_mode": False},
    {"trust_clip": True},
    {"weight_decay": 0.0},
    {"weight_decay": 0.0, "always_adapt": False},
    {"phi": (0.0, 10.0)},
    {"phi": (50.0, 100.0)},
    {"max_grad_norm": 1.0, "eps": 1e-2},
    {"max_grad_norm": 1e3},
    {"bias_correction": False, "trust_clip": True, "phi": (1.0, 12.0), "betas": (0.5, 0.9)},
]


@pytest.mark.parametrize("arguments", LAMB_VARIANTS, ids=str)
def test_lambs_variants_equal_the_plain_formula(arguments: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    start, gradients = 5 * rng.normal(size=(5, 7)), [rng.normal(size=(5, 7)) for _ in range(12)]
    assert np.linalg.norm(start) > 12
    p = nn.Parameter(torch.tensor(start))
    optimizer = optimizers.LAMB([p], **arguments)
    for g in gradients:
        p.grad = torch.tensor(g)
        optimizer.step()
    expected = references.lamb(start, gradients, **arguments)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12, atol=1e-14)
    plain = references.lamb(start, gradients)
    assert arguments == {"max_grad_norm": 1e3} or not np.allclose(expected, plain, rtol=1e-9)


def test_lamb_clips_the_gradient_of_all_groups_together() -> None:
    case, ours, theirs = Case("LAMB", {"max_grad_norm": 1.0, "eps": 1e-2}), *map(parameters_for, [Case("LAMB")] * 2)
    grouped = case.build([{"params": ours[:1]}, {"params": ours[1:]}])
    unclipped = Case("LAMB", {"eps": 1e-2}).build(theirs)
    for step in range(3):
        for parameters in (ours, theirs):
            fill_gradients(parameters, case, step)
        nn.utils.clip_grad_norm_(theirs, 1.0)
        grouped.step()
        unclipped.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_lamb_leaves_a_tensor_of_zeros_its_plain_step() -> None:
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1.0, -2.0, 3.0])
    optimizers.LAMB([p], lr=0.1, eps=0.0).step()
    torch.testing.assert_close(p.detach(), torch.tensor([-0.1, 0.1, -0.1]))


@pytest.mark.parametrize("shape", [(5, 7), (8, 8), (3, 11), (1, 4)], ids=str)
@pytest.mark.parametrize(("most", "every", "start"), [(4, 1, 1), (4, 3, 2), (100, 2, 5)])
def test_blocked_shampoo_equals_the_plain_formula(shape: tuple[int, int], most: int, every: int, start: int) -> None:
    rng = np.random.default_rng(0)
    begin, gradients = rng.normal(size=shape), [rng.normal(size=shape) for _ in range(12)]
    p = nn.Parameter(torch.tensor(begin))
    optimizer = optimizers.Shampoo(
        [p], lr=1e-2, weight_decay=0.1, max_preconditioner_dim=most, precondition_every=every, start_step=start
    )
    for g in gradients:
        p.grad = torch.tensor(g)
        optimizer.step()
    expected = references.shampoo(begin, gradients, most, every, start, lr=1e-2, decay=0.1)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("count", "block_size"), [(23, 5), (20, 5), (3, 5)])
def test_sparse_memory_efficient_adam_equals_the_plain_formula(count: int, block_size: int) -> None:
    rng = np.random.default_rng(0)
    begin, gradients = rng.normal(size=count), [rng.normal(size=count) for _ in range(40)]
    p = nn.Parameter(torch.tensor(begin))
    schedule = {"warmup_steps": 4, "warmup_factor": 0.2, "lr_decay_steps": 7, "lr_decay_factor": 0.5}
    optimizer = optimizers.SparseMemoryEfficientAdam(
        [p], block_size=block_size, sparsity_ratio=0.5, storage="fp32", **schedule
    )
    drawn, before = [], torch.zeros(-(-count // block_size))
    for g in gradients:
        p.grad = torch.tensor(g)
        optimizer.step()
        after = optimizer.state[p]["block_step"].clone()
        drawn.append((after - before).nonzero().flatten().tolist())
        before = after
    assert {len(blocks) for blocks in drawn} == {max(1, len(before) // 2)}
    assert before.max() > 14  # the rate has fallen to its end
    expected = references.sparse_memory_efficient_adam(
        begin, gradients, drawn, block_size, warmup=(4, 0.2), fall=(7, 0.5)
    )
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        (1, [0.4998986, -0.25010065, 1.00009989, -1.49989759, 0.75010014, 0.099899]),
        (10, [0.499559, -0.25012121, 1.0004792, -1.4997046, 0.74981616, 0.09960102]),
    ],
)
def test_sparse_memory_efficient_adam_equals_the_published_class(updates: int, expected: list[float]) -> None:
    """Where every tensor is drawn: what the class behind the document gives, its moments in full precision."""
    p = nn.Parameter(torch.tensor([[0.5, -0.25, 1.0], [-1.5, 0.75, 0.1]], dtype=torch.float64))
    optimizer = optimizers.SparseMemoryEfficientAdam([p], sparsity_ratio=1.0, storage="fp32")
    for t in range(1, updates + 1):
        p.grad = torch.sin(0.7 * t + 1.3 * torch.arange(6, dtype=torch.float64)).view(2, 3)
        optimizer.step()
    torch.testing.assert_close(p.detach().flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-8)


def test_sparse_adam_equals_the_plain_formula() -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(9, 4))
    touched = [(rng.permutation(9)[:3], rng.normal(size=(3, 4))) for _ in range(12)]
    p = nn.Parameter(torch.tensor(start))
    optimizer = optimizers.SparseAdam([p])
    for rows, g in touched:
        p.grad = torch.sparse_coo_tensor(torch.tensor(rows)[None], torch.tensor(g), (9, 4))
        optimizer.step()
    expected = references.sparse_adam(start, touched, 1e-3)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("t", "factor"), [(1, 1.0), (10, 0.48), (100, 0.98), (1000, 2.515)])
def test_a_stale_row_steps_as_the_documents_page_says(t: int, factor: float) -> None:
    p = nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))
    optimizer = optimizers.SparseAdam([p], lr=1.0, eps=0.0)
    for step in range(1, t + 1):
        row = 1 if step == t else 0
        p.grad = torch.sparse_coo_tensor([[row]], [[1.0]], (2, 1), dtype=torch.float64)
        optimizer.step()
    assert -p[1].item() == pytest.approx(factor, abs=0.005)


@pytest.mark.parametrize("theirs", ["torchao", "bitsandbytes"])
def test_adamw8bit_stays_with_the_other_8_bit_optimizers_and_with_32_bits(
    theirs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    peer = importlib.import_module(f"{theirs}.optim").AdamW8bit
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 256, generator=generator)
    parameters = [nn.Parameter(start.clone()) for _ in range(3)]
    trio = [
        optimizers.AdamW8bit(parameters[:1], lr=1e-3),
        peer(parameters[1:2], lr=1e-3),
        torch.optim.AdamW(parameters[2:], lr=1e-3),
    ]
    for step in range(50):
        g = 0.01 * torch.randn(64, 256, generator=generator)
        for p, optimizer in zip(parameters, trio, strict=True):
            p.grad = g.clone()
            optimizer.step()
        if step == 0:  # error enters only through what is stored
            torch.testing.assert_close(parameters[0], parameters[2], rtol=1e-6, atol=1e-7)
    ours, others, exact = (p.detach() for p in parameters)
    assert (ours - exact).abs().mean() <= 1.5e-4
    assert (ours - exact).abs().max() <= 1.2e-3
    assert (ours - others).abs().mean() <= (2e-5 if theirs == "torchao" else 1.5e-4)
