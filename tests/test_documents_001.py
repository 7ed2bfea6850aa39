"""Document 001's own code as it stands, but for the import's module; names that its blocks lack are supplied."""

import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from optimeter import optimizers

CONSTRUCTOR = """
from optimeter.optimizers import Automagic_CameAMP_COptim8bit
import torch.nn as nn

model = nn.Sequential(
    nn.Linear(784, 256),
    nn.ReLU(),
    nn.Linear(256, 10)
)

optimizer = Automagic_CameAMP_COptim8bit(
    model.parameters(),
    lr=1e-3,
    context_window=100,
    edge_threshold=0.95,
    adaptation_rate=0.1,
    momentum_scales=[1, 5, 10, 25]
)
"""
LOOP = """
for epoch in range(num_epochs):
    for batch_idx, (data, target) in enumerate(dataloader):
        output = model(data)
        loss = criterion(output, target)

        optimizer.zero_grad()
        loss.backward()

        optimizer.step()

        if batch_idx % 100 == 0:
            is_edge = optimizer.c_optim.detect_edge_case()
            lr_mult = optimizer.c_optim.compute_contextual_lr_multiplier()
            print(f'Epoch: {epoch}, Batch: {batch_idx}, '
                  f'Loss: {loss.item():.4f}, '
                  f'Edge Case: {is_edge}, '
                  f'LR Multiplier: {lr_mult:.4f}')
"""
QUESTIONS = """
is_edge_case = optimizer.c_optim.detect_edge_case()

if is_edge_case:
    print("edge")

lr_multiplier = optimizer.c_optim.compute_contextual_lr_multiplier()
effective_lr = base_lr * lr_multiplier

consistency = optimizer.c_optim.compute_gradient_consistency()
print(f"{consistency:.4f}")

state_dict = optimizer.state_dict()
torch.save(state_dict, file)
file.seek(0)

loaded_state = torch.load(file)
optimizer.load_state_dict(loaded_state)
"""


class Batches:
    """Ten classes of noisy patterns, 25 batches an epoch."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        patterns = torch.randn(10, 784, generator=generator)
        for _ in range(25):
            labels = torch.randint(10, (32,), generator=generator)
            yield patterns[labels] + torch.randn(32, 784, generator=generator), labels


def test_the_examples_run_one_after_the_other(capsys: pytest.CaptureFixture) -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {
        "torch": torch,
        "num_epochs": 4,
        "dataloader": Batches(),
        "criterion": nn.CrossEntropyLoss(),
        "base_lr": 1e-3,
        "file": io.BytesIO(),
    }
    exec(CONSTRUCTOR, names)
    with pytest.warns(UserWarning, match="no loss was reported"):
        exec(LOOP, names)
    exec(QUESTIONS, names)
    printed = capsys.readouterr().out
    losses = [float(x) for x in re.findall(r"Loss: (\S+),", printed)]
    assert len(losses) == 4
    assert losses[-1] < 0.5 * losses[0]
    assert names["optimizer"].c_optim.multiplier != 1
    assert -1 <= names["consistency"] <= 1


DEFAULTS = {
    "lr": 1e-6,
    "betas": (0.8, 0.99, 0.999),
    "eps": (1e-30, 1e-16, 1e-8),
    "weight_decay": 5e-4,
    "warmup_steps": 500,
    "context_window": 100,
    "edge_threshold": 0.95,
    "adaptation_rate": 0.1,
    "momentum_scales": (1, 5, 10, 25),
    "block_size": 4096,  # its `blocksize`
}


def test_defaults_are_the_documents() -> None:
    optimizer = optimizers.Automagic_CameAMP_COptim8bit([nn.Parameter(torch.ones(1))])
    assert DEFAULTS.items() <= optimizer.param_groups[0].items()


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr": 1e-3, "context_window": 50},
        {"lr": 1e-3, "verbose": True},
        {"lr": 1e-4, "context_window": 200, "edge_threshold": 0.9},
        {"lr": 1e-3, "context_window": 50, "edge_threshold": 0.95},
        {"momentum_scales": [1, 3, 7, 15]},
        {"momentum_scales": [1, 10, 25, 50]},
        {"warmup_steps": 1000, "lr": 1e-4},
    ],
    ids=str,
)
def test_its_other_settings_are_taken(arguments: dict[str, Any]) -> None:
    p = nn.Parameter(torch.ones(64, 64))
    optimizer = optimizers.Automagic_CameAMP_COptim8bit([p], **arguments)
    p.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert (p != 1).any()
