"""Each technique of CustomAdamW alone: against worked numbers, and against others' code where there is some."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optimeter import optimizers
from optimeter.optimizers.custom.techniques import (
    adopt,
    allora,
    cautious,
    decay_share,
    gram_matrix,
    grams,
    orthogonal_gradient,
    regularized_gradient,
    row_norms,
    selective_projection,
    torque,
)
from tests.cases import Case, parameters_for, train


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


THETA, ANCHOR = vector(0.5, -0.25, 1, -1.5), vector(0.4, -0.2, 1.1, -1.2)
G, U = vector(0.3, -0.1, 0.2, 0.4), vector(0.2, -0.3, -0.1, 0.4)
M, V = vector(0.1, 0.1, -0.2, 0.3), vector(0.04, 0.01, 0.09, 0.16)
A, B = torch.stack([vector(1, 0, 2), vector(0, 1, -1)]), torch.tensor([[0.5, 0], [1, 1], [0, -0.5], [0.2, 0.3]])
STEPPED = THETA - 0.1 * U  # with lr = 0.1


def adopted(first: Tensor, g: Tensor, t: int) -> tuple[Tensor, Tensor]:
    m, v = M.clone(), V.clone()
    adopt(first, g, m, v, t=t, betas=(0.9, 0.99), eps=1e-6)
    return m, v


def torqued() -> tuple[Tensor, Tensor, Tensor]:
    alignment = torch.tensor(0.2, dtype=torch.float64)
    d = torque(M, G, alignment, 0.9)
    return alignment, d, 0.9 * M + (1e-8 + d) * G


def norms() -> Tensor:
    return row_norms(B.double(), gram_matrix(A))


VECTORS: list[tuple[str, Callable[[], Tensor], Tensor]] = [
    ("⊥Grad", lambda: orthogonal_gradient(G, THETA), vector(0.339723, -0.118633, 0.269621, 0.312761)),
    ("AGR", lambda: regularized_gradient(G), vector(0.21, -0.09, 0.16, 0.24)),
    ("TAM's alignment", lambda: torqued()[0], torch.tensor(0.227140)),
    ("TAM's d", lambda: torqued()[1], torch.tensor(0.613570)),
    ("TAM's momentum", lambda: torqued()[2], vector(0.274071, 0.028643, -0.057286, 0.515428)),
    ("ADOPT's m", lambda: adopted(G, G, 5)[0], vector(0.239535, -0.01, -0.113333, 0.37)),
    ("ADOPT's v", lambda: adopted(G, G, 5)[1], vector(0.0405, 0.01, 0.0895, 0.16)),
    ("ADOPT's m at first", lambda: adopted(G, G, 0)[0], M),
    ("ADOPT's v at first", lambda: adopted(G, G, 0)[1], G**2),
    ("Grams", lambda: grams(U, G), vector(0.2, -0.3, 0.1, 0.4)),
    ("Cautious", lambda: cautious(U, G), vector(0.2, -0.3, 0, 0.4)),
    ("row norms", norms, vector(1.118034, 1.732051, 0.707107, 0.374166)),
    ("ALLoRA", lambda: allora(norms(), 2.0), vector(0.854971, 0.710301, 1.022162, 1.265756)),
    ("SPD, no action", lambda: selective_projection(STEPPED, THETA, ANCHOR, G, 0.5), vector(0.48, -0.22, 1.01, -1.54)),
    (
        "SPD",
        lambda: selective_projection(STEPPED, THETA, ANCHOR, -G, 0.5),
        vector(0.477139, -0.219285, 1.013219, -1.527841),
    ),
]


@pytest.mark.parametrize(("formula", "expected"), [row[1:] for row in VECTORS], ids=[row[0] for row in VECTORS])
def test_worked_numbers(formula: Callable[[], Tensor], expected: Tensor) -> None:
    torch.testing.assert_close(formula(), expected.double(), rtol=0, atol=6e-7)


@pytest.mark.parametrize(
    ("step", "percent"),
    [
        *[(1, 100), (1000, 100), (1500, 83.666), (2000, 70), (3000, 49), (5000, 24.01)],
        *[(7000, 11.765), (7455, 10.002), (7456, 10), (100_000, 10)],
    ],
)
def test_the_weight_decay_curve(step: int, percent: float) -> None:
    assert 100 * decay_share(step, 1000, 0.7, 0.1) == pytest.approx(percent, abs=5e-4)


def test_the_floor_of_the_curve_is_reached_at_step_7456() -> None:
    shares = [decay_share(step, 1000, 0.7, 0.1) for step in range(1, 7600)]
    assert shares.index(0.1) + 1 == 7456
    assert shares == sorted(shares, reverse=True)


def test_gram_matrices_are_the_norms_of_the_whole_product() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 9, 3, 3), (13, 4, 1, 1)))
    product = torch.einsum("orxy,rihw->oihw", b, a)
    torch.testing.assert_close(row_norms(b, gram_matrix(a)), product.flatten(1).norm(dim=1))


def zero_g(formula: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: formula(torch.zeros_like(x), x)


EDGES: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("⊥Grad", zero_g(orthogonal_gradient)),
    ("⊥Grad at w = 0", lambda x: orthogonal_gradient(x, torch.zeros_like(x))),
    ("AGR", lambda x: regularized_gradient(torch.zeros_like(x))),
    ("TAM", lambda x: torque(torch.zeros_like(x), x, x.new_zeros(()), 0.9)),
    ("Cautious", zero_g(cautious)),
    ("SPD", lambda x: selective_projection(x, x, x, x, 0.1)),
    ("SPD at 0", lambda x: selective_projection(0 * x, 0 * x, None, x, 0.1)),
]


@pytest.mark.parametrize("shape", [(3,), (1,), (), (0,), (0, 4)], ids=str)
@pytest.mark.parametrize("formula", [formula for _, formula in EDGES], ids=[name for name, _ in EDGES])
def test_zeros_and_empty_tensors_stay_finite(formula: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    assert formula(torch.full(shape, 2.0)).isfinite().all()


def test_one_element_keeps_its_gradient() -> None:
    g = torch.tensor([0.5])
    assert torch.equal(regularized_gradient(g), g)
    assert torch.equal(orthogonal_gradient(g, torch.ones(1)), g)


def test_a_gradient_along_the_weights_is_not_blown_up_from_rounding() -> None:
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert not orthogonal_gradient(0.37 * w, w).any()


NAN = vector(0.1, torch.nan, 0.3)


@pytest.mark.parametrize(
    "result",
    [
        orthogonal_gradient(NAN, NAN.nan_to_num()),
        regularized_gradient(NAN),
        torque(NAN, NAN.nan_to_num(), NAN.new_zeros(()), 0.9),
        grams(NAN, NAN),
        cautious(NAN, NAN),
        selective_projection(NAN, NAN.nan_to_num(), None, NAN, 0.1),
    ],
)
def test_a_nan_comes_out_as_a_nan(result: Tensor) -> None:
    assert result.isnan().any()


def plain(parameters: Any, **flags: Any) -> torch.optim.Optimizer:
    """CustomAdamW with nothing on but `flags`."""
    off = dict.fromkeys(optimizers.custom_adamw.TECHNIQUES, False)
    return optimizers.CustomAdamW(parameters, **{"storage": "fp32"} | off | flags)


def torch_adopt(parameters: Any) -> torch.optim.Optimizer:
    from adopt import ADOPT

    return ADOPT(parameters, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, decouple=True)


def peers_grams(parameters: Any) -> torch.optim.Optimizer:
    from pytorch_optimizer import Grams

    return Grams(parameters, lr=1e-3, eps=1e-8, weight_decay=0.1)


def peers_orthograd(parameters: Any) -> torch.optim.Optimizer:
    from pytorch_optimizer import OrthoGrad

    return OrthoGrad(torch.optim.AdamW(parameters, weight_decay=0.1))


PEERS = [
    ("use_adopt_stability", torch_adopt),
    ("use_grams", peers_grams),
    ("use_orthogonal_grad", peers_orthograd),
]


@pytest.mark.filterwarnings("ignore:`torch._utils.is_compiling` is deprecated:UserWarning")  # in torch-adopt
@pytest.mark.parametrize(("flag", "oracle"), PEERS, ids=[flag for flag, _ in PEERS])
def test_equals_an_independent_implementation(flag: str, oracle: Callable) -> None:
    case = Case("CustomAdamW")
    results = []
    for build in (lambda p: plain(p, weight_decay=0.1, **{flag: True}), oracle):
        parameters = parameters_for(case, torch.float64)
        train(case, 25, parameters=parameters, optimizer=build(parameters))
        results.append(torch.cat([p.detach().flatten() for p in parameters]))
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


def test_cautious_equals_anothers() -> None:
    from pytorch_optimizer.base.optimizer import BaseOptimizer

    generator = torch.Generator().manual_seed(0)
    update, g = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    theirs = update.clone()
    BaseOptimizer.apply_cautious(theirs, g)
    torch.testing.assert_close(cautious(update, g), theirs, rtol=1e-14, atol=0)
    assert not torch.equal(theirs, update)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_with_nothing_on_it_is_adamw_to_the_bit(dtype: torch.dtype) -> None:
    case = Case("CustomAdamW")
    for arguments in ({"storage": "fp32"}, {"storage": "bf16", "amsgrad": True}, {"storage": "8bit"}):
        arguments = arguments | {"weight_decay": 0.1, "min_8bit_size": 0, "block_size": 64}
        results = []
        for build in (lambda p, a=arguments: plain(p, **a), lambda p, a=arguments: optimizers.AdamW(p, **a)):
            parameters = parameters_for(case, dtype)
            train(case, 25, parameters=parameters, optimizer=build(parameters))
            results.append(parameters)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_adopts_first_step_moves_nothing() -> None:
    p = nn.Parameter(torch.ones(5))
    optimizer = plain([p], use_adopt_stability=True, use_spd=True, weight_decay=0.1)
    for moved in (False, True):
        p.grad = torch.full((5,), 0.3)
        optimizer.step()
        assert bool((p != 1).any()) is moved
