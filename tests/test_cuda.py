"""What only a GPU can show. Skipped without one; OPTIMETER_TEST_DEVICE=cpu tries the tests themselves.

Run it in a process of its own: one illegal access or device-side assert spoils CUDA for the whole process.
"""

import gc
import os
from typing import Any

import pytest
import torch
from torch import nn

from optimeter import OptimizerMonitor
from optimeter.measure.devices.cuda import CudaAllocator
from optimeter.measure.jobs.isolate import run_isolated
from optimeter.measure.memory.prediction import predict
from optimeter.optimizers.core.quantize import SIGNED, UNSIGNED, dequantize, quantize
from optimeter.optimizers.core.storage import hash32, stochastic_round
from optimeter.workloads import MLP, Embedding, Toy
from tests.cases import CASES, DENSE, Case, fill_gradients, parameters_for, train
from tests.conftest import no_synchronisation
from tests.trials import train as trained

DEVICE = os.environ.get("OPTIMETER_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device")
all_cases = pytest.mark.parametrize("case", CASES, ids=str)
dense_cases = pytest.mark.parametrize("case", DENSE, ids=str)


@all_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gpu_takes_the_same_steps_as_a_cpu(case: Case, dtype: torch.dtype) -> None:
    start = parameters_for(case, dtype)
    here, there = (train(case, 5, dtype=dtype, device=device)[0] for device in ("cpu", DEVICE))
    for p, a, b in zip(start, here, there, strict=True):
        moved, apart = (a.double() - p.double()).norm(), (a.double() - b.detach().cpu().double()).norm()
        assert apart <= (0.02 if dtype == torch.float32 else 0.1) * moved + 1e-12, (apart / moved).item()


@pytest.mark.parametrize("kind", [SIGNED, UNSIGNED])
def test_codes_and_bits_are_those_of_a_cpu(kind: str) -> None:
    x = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) ** 3
    x = x if kind == SIGNED else x.abs()
    codes, scale = quantize(x, kind, 256)
    there, their_scale = quantize(x.to(DEVICE), kind, 256)
    assert torch.equal(scale, their_scale.cpu())
    assert torch.equal(codes, there.cpu()), (codes != there.cpu()).sum()
    assert torch.equal(dequantize(codes, scale, kind, 256), dequantize(there, their_scale, kind, 256).cpu())
    position = torch.arange(x.numel(), dtype=torch.int32)
    assert torch.equal(hash32(position, (1, 2, 3)), hash32(position.to(DEVICE), (1, 2, 3)).cpu())
    assert torch.equal(
        stochastic_round(x, (1, 2, 3), position), stochastic_round(x.to(DEVICE), (1, 2, 3), position.to(DEVICE)).cpu()
    )


@dense_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_waits_for_nothing(case: Case, dtype: torch.dtype) -> None:
    if case.name == "Shampoo":
        pytest.skip("a renewal of its roots waits")
    parameters, optimizer = train(case, 3, dtype=dtype, device=DEVICE)
    fill_gradients(parameters, case, 3)
    with no_synchronisation():
        optimizer.step()


@dense_cases
def test_the_allocator_counts_what_the_ledger_walks(case: Case) -> None:
    model = nn.Module()
    model.weights = nn.ParameterList(parameters_for(case, device=DEVICE))
    torch.ones(8, 8, device=DEVICE) @ torch.ones(8, 8, device=DEVICE)  # cuBLAS takes its workspace here
    torch.ones(8, device=DEVICE).dot(torch.ones(8, device=DEVICE))
    optimizer = case.build(list(model.weights))
    with OptimizerMonitor(model, optimizer, sample_every=1) as monitor:
        for step in range(3):
            fill_gradients(list(model.weights), case, step)
            optimizer.step()
            monitor.record(1.0)
    memory = monitor.summary()["memory"]
    if DEVICE == "cuda":
        tables = sum(x.nbytes for d in getattr(optimizer, "shared", {}).values() for x in d.values())
        assert memory["allocator_state_bytes"] + tables == monitor.walked_bytes["cuda"]
        assert memory["by_device"].keys() == {"cuda"}


@pytest.mark.skipif(DEVICE != "cuda", reason="only CUDA's allocator counts")
def test_garbage_that_is_freed_during_a_step_was_not_there_before() -> None:
    def collect(*_: Any) -> None:
        gc.collect()

    garbage: list[Any] = [torch.empty(1000, device="cuda")]
    garbage.append(garbage)
    model = nn.Linear(2, 2).cuda()
    optimizer = torch.optim.SGD(model.parameters())
    monitor = OptimizerMonitor(model, optimizer)
    with monitor:
        optimizer.register_step_pre_hook(collect)  # runs after the monitor's own
        del garbage
        model(torch.ones(1, 2, device="cuda")).sum().backward()
        optimizer.step()
        monitor.record(1.0)
    assert monitor.summary()["memory"]["allocator_state_bytes"] == 0


@pytest.mark.skipif(DEVICE != "cuda", reason="only CUDA's allocator counts")
def test_peaks_are_of_the_bytes_asked_for() -> None:
    allocator = CudaAllocator(torch.device("cuda"))
    allocator.begin()
    torch.empty(1001, device="cuda")  # 4,004 bytes in a block of 4,096
    allocator.phase_ends("step")
    assert allocator.transient() == 4004


@pytest.mark.skipif(DEVICE != "cuda", reason="a CPU takes other paths")
@pytest.mark.parametrize("name", ["torch AdamW", "torch AdamW fused", "AdamW", "AdamW8bit", "Lion"])
def test_the_planned_temporaries_are_those_of_the_step(name: str) -> None:
    """Not of Adafactor's: the mean of a matrix's columns takes as much again inside itself, which no plan sees."""
    from optimeter import optimizers

    def build(named: Any) -> torch.optim.Optimizer:
        parameters = [p for _, p in named]
        if name.startswith("torch"):
            return torch.optim.AdamW(parameters, fused=True if name.endswith("fused") else None)
        return getattr(optimizers, name)(parameters)

    named = [(f"weight{i}", nn.Parameter(torch.ones(1024, 1024, device="cuda"))) for i in range(8)]
    optimizer, allocator = build(named), CudaAllocator(torch.device("cuda"))
    for _ in range(3):
        for _, p in named:
            p.grad = torch.ones_like(p)
        allocator.begin()
        optimizer.step()
        allocator.phase_ends("step")
    planned = predict(build, named).transient_bytes
    assert planned == pytest.approx(allocator.transient(), rel=0.05, abs=100_000)


@pytest.mark.parametrize("lr", [1e-3, 1e30])
@pytest.mark.parametrize("workload", [MLP(steps=70), Embedding(steps=70)], ids=lambda w: type(w).__name__)
def test_runs_on_a_gpu_end_as_on_a_cpu(workload: Any, lr: float) -> None:
    from optimeter import optimizers

    def build(named: Any) -> torch.optim.Optimizer:
        return optimizers.SophiaG([p for _, p in named], lr=lr)

    lines: list[dict[str, Any]] = []
    # Past 64 steps: the first read-back.
    blocks = trained(workload, build, lines.append, device=DEVICE, hessian_every=5)
    assert blocks.status == ("ok" if lr < 1 else "diverged"), blocks.reason
    if lr < 1 and DEVICE == "cuda":
        assert [line["step"] for line in lines] == list(range(1, 71))
        assert set(blocks.memory.peak_bytes or ()) >= {"forward", "backward", "step", "estimator", "evaluation"}
        assert blocks.memory.unexplained_bytes == 0


def on_device(send: Any) -> list[str]:
    x = torch.ones(3, device=DEVICE)
    return [str(x.device), str(float(x.sum()))]


def too_much(send: Any) -> dict[str, Any]:
    from optimeter.measure.jobs.child import _out_of_memory

    try:
        torch.empty(1 << 50, dtype=torch.uint8, device=DEVICE)
    except Exception as error:
        return {"oom": _out_of_memory(error), "type": type(error).__name__}
    return {"oom": False, "type": None}


def test_children_of_the_fork_server_can_use_the_gpu() -> None:
    for _ in range(2):
        assert run_isolated(on_device).result[1] == "3.0"
    assert run_isolated(too_much).result["oom"]


def test_toy_with_a_dot_product_has_no_unexplained_workspace() -> None:
    from optimeter import optimizers

    def build(named: Any) -> torch.optim.Optimizer:
        return optimizers.CustomAdamW(named)

    blocks = trained(Toy(steps=5), build, device=DEVICE)
    if DEVICE == "cuda":
        assert abs(blocks.memory.unexplained_bytes) < 4096, "cuBLAS's workspace is 32 MiB on Hopper"
