"""The documents' own examples: the same classes, calls and arguments, with only the import line changed."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from optimeter import optimizers
from tests.conftest import Ran


def test_000_sparse_memory_efficient_adam() -> None:
    from optimeter.optimizers import SparseMemoryEfficientAdam

    class SimpleModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(10, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    torch.manual_seed(0)
    model = SimpleModel()
    criterion = nn.CrossEntropyLoss()
    optimizer = SparseMemoryEfficientAdam(model.parameters(), lr=1e-3, sparsity_ratio=0.1)
    for _ in range(10):
        inputs = torch.randn(32, 10)
        targets = torch.randint(0, 2, (32,))
        before = [p.detach().clone() for p in model.parameters()]
        loss = criterion(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
        moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
        assert sum(moved) == 1  # two blocks, both short: the weight's and the bias's; one of them a step
    assert {state["exp_avg_sq"].dtype for state in optimizer.state.values()} == {torch.bfloat16}


def test_000_the_defaults_are_the_documents() -> None:
    said = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 1e-2,
        "block_size": 1024,
        "sparsity_ratio": 0.1,
        "warmup_steps": 1000,
        "warmup_factor": 0.1,
        "lr_decay_steps": 10000,
        "lr_decay_factor": 0.1,
    }
    defaults = optimizers.SparseMemoryEfficientAdam([nn.Parameter(torch.ones(1))]).defaults
    assert {name: defaults[name] for name in said} == said


# The document builds the optimizer after the forward pass, from `optim`; `optim` is ours here.
@pytest.mark.parametrize("optim", [optimizers, torch.optim], ids=["ours", "torch's"])
def test_003_sparse_adam(optim: object) -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(1000, 50, sparse=True)
    before = embedding.weight.detach().clone()
    input_ids = torch.randint(0, 1000, (4, 5))
    embeddings = embedding(input_ids)
    loss = embeddings.pow(2).sum()
    optimizer = optim.SparseAdam(embedding.parameters(), lr=0.01)  # type: ignore[attr-defined]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    changed = (embedding.weight != before).any(1).nonzero().flatten()
    assert changed.tolist() == sorted(set(input_ids.flatten().tolist()))
    assert embedding(input_ids).pow(2).sum() < loss


ADAFACTOR_002 = {"lr": 1e-3, "relative_step": False, "scale_parameter": True, "warmup_init": True}


def test_002_adafactor_is_refused_by_transformers_and_by_us() -> None:
    from transformers.optimization import Adafactor

    model = nn.Linear(4, 3)
    for cls in (Adafactor, optimizers.Adafactor):
        with pytest.raises(ValueError, match="relative_step=True"):
            cls(model.parameters(), **ADAFACTOR_002)  # type: ignore[arg-type]
    fixed = ADAFACTOR_002 | {"relative_step": True}
    optimizers.Adafactor(model.parameters(), **fixed)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["hf_adafactor", "adafactor"])
def test_002_adafactor_is_refused_before_anything_runs(bench: Callable[..., Ran], name: str) -> None:
    arguments = [f"optimizer.{key}={str(value).lower()}" for key, value in ADAFACTOR_002.items()]
    ran = bench(f"optimizer={name}", "workload=toy", *arguments)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("bench.py: optimizer: Adafactor: ")
    assert "warmup_init=True" in line
    assert "relative_step=True" in line
    assert not ran.records
