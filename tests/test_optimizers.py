"""Every optimizer × every property, as a table: what must hold whatever the algorithm."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from optimeter import optimizers
from optimeter.optimizers.core.shell import Shell
from tests.cases import CASES, DENSE, Case, fill_gradients, parameters_for, rows, same_bits, train

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
SHAPES = ((), (1,), (0,), (0, 4), (1, 1), (3, 0), (7, 13), (255,), (4097,), (2, 3, 5))
all_cases = pytest.mark.parametrize("case", CASES, ids=str)

dense_cases = pytest.mark.parametrize("case", DENSE, ids=str)
all_cases_and_dtypes = pytest.mark.parametrize(("case", "dtype"), rows(CASES, DTYPES))
dense_cases_and_dtypes = pytest.mark.parametrize(("case", "dtype"), rows(DENSE, DTYPES))
devices = pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])


def test_every_optimizer_has_a_row() -> None:
    classes = [value for value in vars(optimizers).values() if isinstance(value, type)]
    assert {case.name for case in CASES} == {cls.__name__ for cls in classes if issubclass(cls, Shell)}


@all_cases_and_dtypes
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


@all_cases_and_dtypes
@devices
def test_the_same_twice_is_the_same(case: Case, dtype: torch.dtype, device: str) -> None:
    assert same_bits(*(train(case, dtype=dtype, device=device)[0] for _ in range(2)))


@all_cases_and_dtypes
def test_two_groups_are_two_optimizers(case: Case, dtype: torch.dtype) -> None:
    together = parameters_for(case, dtype)
    apart = parameters_for(case, dtype)
    if case.coupled:
        pytest.skip("declared as coupled: it looks at a group as a whole")
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


@all_cases_and_dtypes
def test_lr_0_moves_nothing(case: Case, dtype: torch.dtype) -> None:
    parameters = parameters_for(case, dtype)
    before = [p.clone() for p in parameters]
    train(case, 3, parameters=parameters, optimizer=case.build(parameters, lr=0.0))
    assert same_bits(parameters, before)


@all_cases
@devices
def test_state_bytes_are_the_formula(case: Case, device: str) -> None:
    from optimeter.measure.memory.ledger import ledger

    parameters, optimizer = train(case, 1, device=device)
    expected = sum(case.bytes_per_parameter(p.shape) * p.numel() for p in parameters)
    found = ledger(optimizer)
    code_tables = found.by_role.get("code_tables", 0)
    in_8_bits = any(name.endswith("_scale") for state in optimizer.state.values() for name in state)
    tables = 2 * 256 if device == "cpu" else 2 * (256 + 255)  # a CPU writes by a table that is the process's
    assert code_tables == (4 * tables if in_8_bits else 0)
    assert found.state_bytes - code_tables - found.by_role.get("context", 0) == pytest.approx(expected, abs=1e-6)


class CountHostReads(TorchDispatchMode):
    """Counts the reads of a tensor's value by Python."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@dense_cases_and_dtypes
def test_a_step_reads_nothing_back(case: Case, dtype: torch.dtype) -> None:
    parameters, optimizer = train(case, 1, dtype=dtype)
    fill_gradients(parameters, case, 1)
    with CountHostReads() as reads:
        optimizer.step()
    assert reads.count == 0


@all_cases_and_dtypes
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
    before = parameters[0].clone()
    optimizer.step()
    if case.nan == "skip":
        assert torch.equal(parameters[0], before)
    else:
        assert parameters[0][0, 0].isnan()
    if not case.coupled:
        assert all(p.isfinite().all() for p in parameters[1:])


@pytest.mark.parametrize(("case", "dtype", "shape"), rows(DENSE, DTYPES, SHAPES))
def test_odd_and_empty_shapes(case: Case, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if case.arguments.get("max_preconditioner_dim", 1) is None and shape == (4097,):
        pytest.skip("its roots of 4097×4097 statistics take a minute")
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
        eps = {"eps": 0.0} if isinstance(case.build(parameters).defaults.get("eps"), float) else {}
        optimizer = case.build(parameters, **eps)
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
        ("Adam", {"storage": "int3"}, "storage must be one of fp32, bf16, 8bit"),
        ("Adafactor", {"beta1": 1.5}, "beta1"),
        ("Adafactor", {"warmup_init": True, "relative_step": False}, "relative_step=True"),
        ("SparseAdam", {"betas": (-0.1, 0.9)}, "betas"),
        ("CAME", {"betas": (0.9, 0.999)}, "betas must be three"),
        ("CAME", {"clip_threshold": 0.0}, "clip_threshold must be above 0"),
        ("LAMB", {"phi": (10,)}, "phi must be two bounds"),
        ("LAMB", {"max_grad_norm": 0.0}, "max_grad_norm"),
        ("SophiaG", {"eps": 0.0}, "eps must be above 0"),
        ("SophiaH", {"gamma": -1.0}, "gamma"),
        ("SparseAdam", {"storage": "8bit"}, "one of fp32, bf16"),
        ("SparseMemoryEfficientAdam", {"sparsity_ratio": 0.0}, "sparsity_ratio must be in \\(0, 1\\]"),
        ("SparseMemoryEfficientAdam", {"storage": "8bit"}, "one of fp32, bf16"),
        ("SparseMemoryEfficientAdam", {"warmup_steps": 0}, "warmup_steps"),
        ("Shampoo", {"betas": (0.9, 1.1)}, "betas"),
        ("Shampoo", {"matrix_eps": 0.0}, "matrix_eps"),
        ("Shampoo", {"grafting": "sgd"}, "adam or None"),
        ("Shampoo", {"max_preconditioner_dim": 0}, "max_preconditioner_dim"),
        ("Shampoo", {"grafting": None}, "start_step=1"),
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


def test_blocks_are_drawn_from_the_whole_group_by_seed_and_step_alone() -> None:
    from optimeter.optimizers.sparse_memory_efficient_adam import draw

    counts = [3, 0, 40, 1, 16]
    assert len({str(draw(counts, 0.25, key)) for key in ((0, 1), (0, 2), (1, 1), (-1, 1))}) == 4
    times = [np.zeros(count) for count in counts]
    for step in range(2000):
        drawn = draw(counts, 0.25, (0, step))
        assert sum(map(len, drawn)) == 15
        for numbers, time in zip(drawn, times, strict=True):
            assert (np.diff(numbers) > 0).all()
            time[numbers] += 1
    assert (np.abs(np.concatenate(times) - 500) < 100).all()  # five standard deviations
    assert [len(numbers) for numbers in draw([2, 3], 0.1, (0, 0))].count(1) == 1
    assert not any(map(len, draw([0], 0.1, (0, 0))))


def test_a_block_that_is_not_drawn_stays_as_it_is() -> None:
    p = nn.Parameter(torch.randn(70, 10, generator=torch.Generator().manual_seed(0)))
    optimizer = optimizers.SparseMemoryEfficientAdam([p], block_size=64, sparsity_ratio=0.3)
    for _ in range(4):
        before = p.detach().clone()
        state = {name: value.clone() for name, value in optimizer.state[p].items() if name in optimizer.moments}
        clocks = optimizer.state[p]["block_step"].clone() if state else torch.zeros(11)
        p.grad = torch.ones_like(p)
        optimizer.step()
        drawn = (optimizer.state[p]["block_step"] != clocks).repeat_interleave(64)[:700]
        assert torch.equal((p != before).flatten(), drawn)
        for name, value in state.items():
            assert torch.equal(optimizer.state[p][name].flatten()[~drawn], value.flatten()[~drawn])


def test_roots_survive_a_nan() -> None:
    p = nn.Parameter(torch.ones(6, 4))
    optimizer = optimizers.Shampoo([p], precondition_every=1, start_step=1, max_preconditioner_dim=4)
    for step in range(3):
        p.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        if step == 2:
            roots = optimizer.state[p]["roots"].clone()
            p.grad[0, 0] = torch.nan
        optimizer.step()
    now = optimizer.state[p]["roots"]
    assert now.isfinite().all()
    hurt = 2 * 4 * 4  # the first block is 4×4, the other 2×4
    assert torch.equal(now[:hurt], roots[:hurt])
    assert not torch.equal(now[hurt:], roots[hurt:])
    assert p[:4].isnan().all()
    assert p[4:].isfinite().all()


@pytest.mark.parametrize("shape", [(7,), (9, 4), (5, 8, 3)], ids=str)
def test_shampoos_blocks_tile_a_tensor(shape: tuple[int, ...]) -> None:
    from optimeter.optimizers.shampoo import cuts, in_blocks, joined

    x = torch.arange(float(torch.Size(shape).numel())).view(shape)
    seen, count = torch.zeros(shape), 0
    for where, size, blocks in cuts(shape, 4):
        cut = in_blocks(x[where], size)
        assert cut.shape == (blocks, *size)
        assert torch.equal(cut[0], x[where][tuple(slice(0, d) for d in size)])
        assert torch.equal(joined(cut, x[where].shape), x[where])
        seen[where] += 1
        count += blocks
    assert (seen == 1).all()
    assert count == torch.Size([-(-n // 4) for n in shape]).numel()


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


@pytest.mark.parametrize(
    ("case", "dtype"), rows([case for case in DENSE if getattr(optimizers, case.name).elementwise], DTYPES)
)
def test_working_in_parts_changes_nothing(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = train(case, 4, dtype=dtype)
    monkeypatch.setattr("optimeter.optimizers.core.shell.PART", 256)
    monkeypatch.setattr("optimeter.optimizers.core.shell.CACHED_PART", 256)
    parts, optimizer = train(case, 4, dtype=dtype)
    assert len(list(optimizer.parts(parts[0], optimizer.param_groups[0]))) > 1
    assert same_bits(whole, parts)
