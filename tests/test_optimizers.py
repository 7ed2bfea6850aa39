"""Every optimizer × every property, as a table: against others' code, against plain formulas, and against itself."""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import optimizers
from tests import references

SHAPES = ((48, 32), (32, 48), (37,), (8, 4, 3, 3))


@dataclass(frozen=True)
class Case:
    """An optimizer of ours with arguments, and what holds for it."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    sparse: bool = False
    bytes_per_parameter: Callable[[torch.Size], float] = lambda shape: 8.0
    scale_free: bool = False  # the step does not depend on the gradient's scale

    def build(self, parameters: Any, **more: Any) -> torch.optim.Optimizer:
        return getattr(optimizers, self.name)(parameters, **self.arguments | more)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.arguments.items())])


def factored(momentum: float) -> Callable[[torch.Size], float]:
    def per_parameter(shape: torch.Size) -> float:
        rows_and_columns = sum(shape[-2:]) * (shape.numel() // (shape[-1] * shape[-2])) if len(shape) > 1 else shape[0]
        return 4 * rows_and_columns / shape.numel() + momentum

    return per_parameter


CASES = [
    Case("Adam", scale_free=True),
    Case("Adam", {"weight_decay": 0.1, "amsgrad": True}, bytes_per_parameter=lambda shape: 12.0),
    Case("Adam", {"storage": "bf16"}, bytes_per_parameter=lambda shape: 4.0),
    Case("AdamW", scale_free=True),
    Case("AdamW", {"maximize": True, "amsgrad": True}, bytes_per_parameter=lambda shape: 12.0),
    Case("AdamW", {"storage": "bf16"}, bytes_per_parameter=lambda shape: 4.0),
    Case("Adafactor", bytes_per_parameter=factored(0), scale_free=True),
    Case("Adafactor", {"beta1": 0.9, "weight_decay": 0.01}, bytes_per_parameter=factored(4)),
    Case(
        "Adafactor",
        {"beta1": 0.9, "storage": "bf16"},
        bytes_per_parameter=lambda s: factored(2)(s) if len(s) > 1 else 4.0,
    ),
    Case("Adafactor", {"lr": 1e-3, "scale_parameter": False, "relative_step": False}, bytes_per_parameter=factored(0)),
    Case("SparseAdam", sparse=True),
    Case("SparseAdam", {"storage": "bf16"}, sparse=True, bytes_per_parameter=lambda shape: 4.0),
]
DENSE = [case for case in CASES if not case.sparse]
all_cases = pytest.mark.parametrize("case", CASES, ids=str)
dense_cases = pytest.mark.parametrize("case", DENSE, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
devices = pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])


def parameters_for(
    case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((40, 8), (17, 3)) if case.sparse else SHAPES
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in shapes]


def fill_gradients(parameters: list[nn.Parameter], case: Case, step: int, scale: float = 1.0) -> None:
    """The same gradients for the same step number, whatever the optimizer did before."""
    generator = torch.Generator().manual_seed(1000 + step)
    for p in parameters:
        g = scale * torch.randn(p.shape, generator=generator)
        if case.sparse:
            rows = torch.randperm(p.shape[0], generator=generator)[:5]
            rows = torch.cat([rows, rows[:2]])  # a row may be touched twice
            g = torch.sparse_coo_tensor(rows[None], g[rows], p.shape)
        p.grad = g.to(p.device, p.dtype)


def train(
    case: Case, steps: int = 6, begin: int = 0, parameters: Any = None, optimizer: Any = None, **setup: Any
) -> Any:
    parameters = parameters or parameters_for(case, **setup)
    optimizer = optimizer or case.build(parameters)
    for step in range(begin, begin + steps):
        fill_gradients(parameters, case, step)
        optimizer.step()
    return parameters, optimizer


def same_bits(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------------ against others


def hf_adafactor(parameters: Any, **arguments: Any) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(parameters, **arguments)


ORACLES = [
    ("Adam", {}, torch.optim.Adam, {}),
    ("Adam", {"weight_decay": 0.1}, torch.optim.Adam, {"weight_decay": 0.1}),
    ("Adam", {"amsgrad": True, "maximize": True}, torch.optim.Adam, {"amsgrad": True, "maximize": True}),
    ("AdamW", {}, torch.optim.AdamW, {}),
    ("AdamW", {"weight_decay": 0.3, "amsgrad": True}, torch.optim.AdamW, {"weight_decay": 0.3, "amsgrad": True}),
    ("AdamW", {"betas": (0.5, 0.8), "eps": 1e-3}, torch.optim.AdamW, {"betas": (0.5, 0.8), "eps": 1e-3, "fused": True}),
    ("Adafactor", {}, hf_adafactor, {}),
    ("Adafactor", {}, torch.optim.Adafactor, {}),
    *[
        ("Adafactor", arguments, hf_adafactor, arguments)
        for arguments in (
            {"warmup_init": True, "beta1": 0.9},
            {"warmup_init": True, "weight_decay": 0.1, "clip_threshold": 0.5, "decay_rate": -0.6},
            {"lr": 1e-3, "scale_parameter": False, "relative_step": False},
            {"lr": 1e-3, "scale_parameter": True, "relative_step": False, "beta1": 0.8, "weight_decay": 0.01},
        )
    ],
]


@pytest.mark.parametrize(("name", "ours", "oracle", "theirs"), ORACLES, ids=lambda value: str(value)[:40])
def test_equals_an_independent_implementation(name: str, ours: dict, oracle: Callable, theirs: dict) -> None:
    case = Case(name)
    results = []
    for build in (lambda p: getattr(optimizers, name)(p, **ours), lambda p: oracle(p, **theirs)):
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


# ------------------------------------------------------------------------------------------ against itself


@all_cases
@dtypes
@devices
def test_resuming_through_a_file_equals_never_stopping(case: Case, dtype: torch.dtype, device: str) -> None:
    whole, _ = train(case, 6, dtype=dtype, device=device)
    parameters, optimizer = train(case, 3, dtype=dtype, device=device)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = case.build(parameters)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(case, 3, begin=3, parameters=parameters, optimizer=resumed)
    assert same_bits(parameters, whole)


@all_cases
@dtypes
@devices
def test_the_same_twice_is_the_same(case: Case, dtype: torch.dtype, device: str) -> None:
    assert same_bits(*(train(case, dtype=dtype, device=device)[0] for _ in range(2)))


@all_cases
@dtypes
def test_two_groups_are_two_optimizers(case: Case, dtype: torch.dtype) -> None:
    together = parameters_for(case, dtype)
    apart = parameters_for(case, dtype)
    one = case.build([{"params": together[:1], "lr": 1e-2}, {"params": together[1:]}])
    two = [case.build(apart[:1], lr=1e-2), case.build(apart[1:])]
    for step in range(4):
        for parameters in (together, apart):
            fill_gradients(parameters, case, step)
        for optimizer in (one, *two):
            optimizer.step()
    assert same_bits(together, apart)


@all_cases
def test_a_missing_gradient_is_no_step(case: Case) -> None:
    parameters, optimizer = train(case, 2)
    before, state = [p.clone() for p in parameters], copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.zero_grad()
    optimizer.step()
    assert same_bits(parameters, before)
    assert str(optimizer.state_dict()["state"]) == str(state)


@all_cases
@dtypes
def test_lr_0_moves_nothing(case: Case, dtype: torch.dtype) -> None:
    parameters = parameters_for(case, dtype)
    before = [p.clone() for p in parameters]
    train(case, 3, parameters=parameters, optimizer=case.build(parameters, lr=0.0))
    assert same_bits(parameters, before)


@all_cases
@devices
def test_state_bytes_are_the_formula(case: Case, device: str) -> None:
    from measure.memory import ledger

    parameters, optimizer = train(case, 1, device=device)
    expected = sum(case.bytes_per_parameter(p.shape) * p.numel() for p in parameters)
    assert ledger(optimizer).state_bytes == pytest.approx(expected, abs=1e-6)


class CountHostReads(TorchDispatchMode):
    """Counts the reads of a tensor's value by Python."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@dense_cases
@dtypes
def test_a_step_reads_nothing_back(case: Case, dtype: torch.dtype) -> None:
    parameters, optimizer = train(case, 1, dtype=dtype)
    fill_gradients(parameters, case, 1)
    with CountHostReads() as reads:
        optimizer.step()
    assert reads.count == 0


@all_cases
@dtypes
def test_leaves_gradients_the_global_generator_and_the_graph_alone(case: Case, dtype: torch.dtype) -> None:
    parameters, optimizer = train(case, 1, dtype=dtype)
    fill_gradients(parameters, case, 1)
    before = [p.grad.clone() for p in parameters]
    generator = torch.get_rng_state()
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), generator)
    for p, g in zip(parameters, before, strict=True):
        assert torch.equal(p.grad.to_dense(), g.to_dense())
    tensors = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
    assert tensors
    assert not any(x.requires_grad or x.grad_fn for x in tensors)


@dense_cases
def test_nan_propagates_to_its_tensor_alone(case: Case) -> None:
    parameters, optimizer = train(case, 1)
    fill_gradients(parameters, case, 1)
    parameters[0].grad[0, 0] = torch.nan
    optimizer.step()
    assert parameters[0][0, 0].isnan()
    assert all(p.isfinite().all() for p in parameters[1:])


@dense_cases
@dtypes
@pytest.mark.parametrize(
    "shape", [(), (1,), (0,), (0, 4), (1, 1), (3, 0), (7, 13), (255,), (4097,), (2, 3, 5)], ids=str
)
def test_odd_and_empty_shapes(case: Case, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    p = nn.Parameter(torch.ones(shape, dtype=dtype))
    optimizer = case.build([p])
    for _ in range(2):
        p.grad = torch.full(shape, 0.5, dtype=dtype)
        optimizer.step()
    assert p.isfinite().all()
    assert p.shape == shape
    assert not p.numel() or (p != 1).any() or dtype == torch.bfloat16


@dense_cases
def test_a_transposed_parameter_is_like_its_contiguous_twin(case: Case) -> None:
    values = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    views = [nn.Parameter(values.clone()), nn.Parameter(values.T.contiguous().T)]
    assert not views[1].is_contiguous()
    for p in views:
        optimizer = case.build([p])
        for step in range(3):
            p.grad = torch.randn(6, 9, generator=torch.Generator().manual_seed(step))
            optimizer.step()
    torch.testing.assert_close(views[0], views[1], rtol=1e-6, atol=1e-7)


@all_cases
def test_schedulers_closures_added_groups_and_copies(case: Case) -> None:
    parameters = parameters_for(case)
    optimizer = case.build(parameters[:1], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    fill_gradients(parameters, case, 0)

    def closure() -> float:
        assert torch.is_grad_enabled()
        return 3.0

    assert optimizer.step(closure) == 3.0
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    optimizer.add_param_group({"params": parameters[1:], "lr": 0.2})
    twin_parameters, twin = copy.deepcopy((parameters, optimizer))
    for members, one in ((parameters, optimizer), (twin_parameters, twin)):
        fill_gradients(members, case, 1)
        one.step()
    assert same_bits(parameters, twin_parameters)
    assert len(optimizer.state) == len(parameters)


@pytest.mark.parametrize("case", [case for case in CASES if case.scale_free], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_step_does_not_depend_on_the_gradients_scale(case: Case, scale: float) -> None:
    results = []
    for factor in (1.0, scale):
        parameters = parameters_for(case, torch.float64)
        optimizer = case.build(parameters, **({"eps": 0.0} if case.name != "Adafactor" else {}))
        for step in range(5):
            fill_gradients(parameters, case, step, factor)
            for p in parameters:
                p.grad = p.grad.double()
            optimizer.step()
        results.append(parameters)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_bf16_weights_move_where_nearest_rounding_would_not() -> None:
    p = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))  # the next bf16 below 1 is 1 − 2⁻⁸; a step is 10⁻⁴
    optimizer = optimizers.AdamW([p], lr=1e-4, weight_decay=0.0)
    for _ in range(20):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert p.double().mean().item() == pytest.approx(1 - 20e-4, abs=2e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("AdamW", {"lr": -1.0}, "lr"),
        ("AdamW", {"lr": torch.tensor(1e-3)}, "lr"),
        ("AdamW", {"betas": (0.9, 1.0)}, "betas"),
        ("Adam", {"eps": -1e-8}, "eps"),
        ("Adam", {"weight_decay": -1}, "weight_decay"),
        ("Adam", {"storage": "int3"}, "storage must be one of fp32, bf16"),
        ("Adafactor", {"beta1": 1.5}, "beta1"),
        ("Adafactor", {"warmup_init": True, "relative_step": False}, "relative_step=True"),
        ("SparseAdam", {"betas": (-0.1, 0.9)}, "betas"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(name: str, arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        getattr(optimizers, name)([nn.Parameter(torch.ones(2))], **arguments)


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="view_as_real"):
        optimizers.AdamW([nn.Parameter(torch.ones(2, dtype=torch.complex64))])


def test_torch_muon_refuses_groups_that_it_would_not_step() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(TypeError, match="not groups"):
        optimizers.TorchMuon([{"params": [p]}])
    with pytest.raises(ValueError, match="to the constructor"):
        optimizers.TorchMuon([p]).add_param_group({"params": [nn.Parameter(torch.ones(1))]})


def test_the_other_kind_of_gradient_is_refused() -> None:
    p = nn.Parameter(torch.ones(4, 2))
    p.grad = torch.ones(4, 2)
    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizers.SparseAdam([p]).step()
    p.grad = torch.ones(4, 2).to_sparse(1)
    with pytest.raises(RuntimeError, match="dense gradients"):
        optimizers.AdamW([p]).step()


def test_torch_muon_routes_matrices_and_resumes() -> None:
    def build() -> tuple[nn.Module, optimizers.TorchMuon]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5))
        return model, optimizers.TorchMuon(model.parameters())

    model, optimizer = build()
    for step in range(4):
        if step == 2:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = optimizers.TorchMuon(model.parameters())
            optimizer.load_state_dict(state)
        model(torch.ones(3, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {"momentum_buffer"} == set(optimizer.state[model[0].weight])
    assert {"step", "exp_avg", "exp_avg_sq"} == set(optimizer.state[model[0].bias])
    whole, whole_optimizer = build()
    for _ in range(4):
        whole(torch.ones(3, 6)).square().sum().backward()
        whole_optimizer.step()
        whole_optimizer.zero_grad()
    assert same_bits(model.parameters(), whole.parameters())
