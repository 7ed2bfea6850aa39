"""Document 004: its command line's arguments, its recommended settings and its weight decay table."""

from typing import Any

import pytest
import torch
from torch import nn

from optimeter.optimizers import CustomAdamW
from optimeter.optimizers.custom.techniques import decay_share

COMMAND = {
    "lr": 1e-4,  # --learning_rate
    "weight_decay": 1e-2,
    "use_alora": True,
    "dynamic_weight_decay": True,
    "wd_transition_steps": 1000,
    "wd_decay_factor": 0.7,
    "wd_min_ratio": 0.1,
}
RECOMMENDED = [  # Stable Diffusion LoRA, language models, image classification
    {"wd_transition_steps": 800, "wd_decay_factor": 0.65, "wd_min_ratio": 0.12},
    {"wd_transition_steps": 1200, "wd_decay_factor": 0.75, "wd_min_ratio": 0.15},
    {"wd_transition_steps": 1100, "wd_decay_factor": 0.70, "wd_min_ratio": 0.10},
]


@pytest.mark.parametrize("arguments", [{}, *RECOMMENDED], ids=str)
def test_the_commands_arguments_train_a_lora(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("lora_down", nn.Linear(8, 4, bias=False))
    model.add_module("lora_up", nn.Linear(4, 6, bias=False))
    nn.init.zeros_(model.lora_up.weight)
    optimizer = CustomAdamW(model.named_parameters(), **COMMAND | {"lr": 1e-2} | arguments)  # type: ignore[arg-type]
    inputs, wanted = torch.randn(64, 8), torch.randn(64, 8) @ torch.randn(8, 6) * 0.1
    losses = []
    for _ in range(60):
        loss = (model(inputs) - wanted).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    info = optimizer.get_optimization_info()
    assert info["lora"]["pairs"] == 1
    assert not info["idle"]
    assert losses[-1] < losses[0]


def test_the_arguments_of_the_command_are_known() -> None:
    optimizer = CustomAdamW([nn.Parameter(torch.ones(2, 2))], **COMMAND)  # type: ignore[arg-type]
    assert {name: optimizer.param_groups[0][name] for name in COMMAND} == COMMAND


@pytest.mark.parametrize(("step", "percent"), [(0, 100), (1000, 100), (1500, 84), (2000, 70), (3000, 49)])
def test_the_decay_table_holds_up_to_step_3000(step: int, percent: int) -> None:
    assert round(100 * decay_share(step, 1000, 0.7, 0.1)) == percent


def test_the_decay_tables_last_row_is_late() -> None:
    """It says 10 % from step 5000; the curve of its other rows is at 24 % there and at 10 % from step 7456."""
    assert round(100 * decay_share(5000, 1000, 0.7, 0.1)) == 24
    assert decay_share(7456, 1000, 0.7, 0.1) == 0.1
