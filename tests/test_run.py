"""The training loop: schedules, divergence, what it checks of itself, and the canaries that it must notice."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from optimeter import workloads
from optimeter.measure.devices import Allocator
from optimeter.measure.devices.base import SETTLE_EVERY
from optimeter.measure.devices.cpu import Cpu
from optimeter.measure.methods.settings import Settings, scheduler
from optimeter.measure.methods.train import Training
from optimeter.measure.records.fields import to_plain
from optimeter.measure.records.schema import Findings
from optimeter.workloads import MLP, Toy, Workload
from tests.trials import train, trial


def sgd(named: Any, **arguments: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for _, p in named], **{"lr": 0.01} | arguments)


def run(workload: Workload, build: Any = sgd, lines: list | None = None, **settings: Any) -> Findings:
    write = (lines if lines is not None else []).append
    return train(workload, build, write, **{"steps": 20} | settings)


def test_the_blocks_are_the_schemas() -> None:
    lines: list[dict[str, Any]] = []
    blocks = run(MLP(steps=20, target=0.05), lines=lines, eval_every=5)
    assert blocks.status == "ok"
    assert [evaluation.step for evaluation in blocks.quality.evaluations] == [0, 5, 10, 15, 20]
    assert blocks.quality.final_loss < blocks.quality.first_loss
    assert blocks.quality.steps_to_target is not None
    assert blocks.memory.predicted_state_bytes == blocks.memory.state_bytes
    assert blocks.memory.allocator_state_bytes is None
    assert "CPU" in blocks.missing["memory.allocator_state_bytes"]
    assert to_plain(blocks.checks) == {
        "parameters_moved": True, "unmoved": [], "frozen_unchanged": True, "finite": True, "state_grew": False,
        "baseline_sound": None,
    }  # fmt: skip
    assert [line["step"] for line in lines] == list(range(1, 21))
    tail = [line["loss"] for line in lines[-2:]]
    assert blocks.quality.train_loss == pytest.approx(sum(tail) / 2)


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    losses = [run(MLP(steps=20), seed=seed).quality.final_loss for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_an_optimizer_that_draws_random_numbers_does_not_change_the_batches() -> None:
    class Draws(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            torch.rand(3)
            return super().step(closure)

    plain = run(MLP(steps=20))
    drawing = run(MLP(steps=20), lambda named: Draws([p for _, p in named], lr=0.01))
    assert plain.quality.final_loss == drawing.quality.final_loss


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1, 1]),
        ("linear", 0, [1, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 1, [1, 1, 0.75, 0.5, 0.25]),
        ("cosine", 0, [(1 + math.cos(math.pi * k / 5)) / 2 for k in range(5)]),
    ],
)
def test_schedules(schedule: str, warmup: int, expected: list[float]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    follows = scheduler(optimizer, Settings(5, schedule=schedule, warmup_steps=warmup))
    seen = []
    for _ in range(5):
        seen.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        if follows:
            follows.step()
    assert seen == pytest.approx(expected)


def test_accumulation_is_the_mean_over_batches() -> None:
    class Fixed(MLP):
        def batches(self, split: str, seed: int) -> Any:
            train, held_out = self.splits
            halves = [(train[0][:64], train[1][:64]), (train[0][64:128], train[1][64:128])]
            joined = [(train[0][:128], train[1][:128])]
            return [held_out] if split == "held_out" else (halves if self.batch == 64 else joined) * 20

    halves = run(Fixed(batch=64, steps=20), accumulate=2)
    joined = run(Fixed(batch=128, steps=20))
    assert halves.quality.final_loss == pytest.approx(joined.quality.final_loss, rel=1e-5)


def test_clipping_bounds_the_gradient() -> None:
    lines: list[dict[str, Any]] = []
    run(Toy(steps=20), lambda named: sgd(named, lr=1e-3), lines, clip_norm=0.5)
    assert all(line["gradient"]["norm"] <= 0.5 + 1e-6 for line in lines)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_weights_in_other_precisions(dtype: torch.dtype) -> None:
    blocks = run(MLP(steps=20), dtype=dtype)
    assert blocks.status == "ok"
    assert blocks.parameters.bytes == blocks.parameters.count * dtype.itemsize


def test_a_closure_is_called_by_an_optimizer_that_wants_one() -> None:
    blocks = run(Toy(steps=5), lambda named: torch.optim.LBFGS([p for _, p in named], lr=0.1), steps=5, closure=True)
    assert blocks.status == "ok"
    assert blocks.quality.final_loss < 164


# ----------------------------------------------------------------------------------------------- honest failures


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    lines: list[dict[str, Any]] = []
    blocks = run(Toy(steps=50), lambda named: sgd(named, lr=10.0), lines, steps=50)
    assert blocks.status == "diverged"
    assert "not finite" in blocks.reason
    assert blocks.steps < 50
    assert blocks.quality.final_loss is None
    assert blocks.quality.best_loss is not None


def test_a_loss_that_stays_high_is_divergence() -> None:
    class Rises(MLP):
        def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
            scale = 1e5 if model.training else 1.0
            return scale * super().loss(model, batch)

    blocks = run(Rises(steps=50), lambda named: sgd(named, lr=1e-12), steps=50)
    assert blocks.status == "diverged"
    assert "above" in blocks.reason
    assert "to step 10" in blocks.reason
    assert blocks.steps <= 10 + SETTLE_EVERY


def test_weights_that_go_nan_while_the_loss_does_not_are_divergence() -> None:
    class Unused(MLP):
        def model(self) -> nn.Module:
            model = super().model()
            model.register_parameter("spare", nn.Parameter(torch.zeros(3)))
            return model

        def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
            return super().loss(model, batch) + 0 * model.spare.detach().nan_to_num().sum()  # type: ignore[operator, union-attr]

    class Spoils(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(torch.nan)

    blocks = run(Unused(steps=8), lambda named: Spoils([p for _, p in named], lr=0.01), steps=8)
    assert blocks.status == "diverged"
    assert "parameter" in blocks.reason


# ------------------------------------------------------------------------------------------------------ canaries


def test_canary_a_frozen_group_and_an_lr_of_0_are_seen() -> None:
    def half_frozen(named: Any) -> torch.optim.Optimizer:
        groups = [{"params": [p], "lr": 0.0 if name.startswith("2.") else 0.1} for name, p in named]
        return torch.optim.SGD(groups)

    checks = run(MLP(steps=20), half_frozen).checks
    assert not checks.parameters_moved
    assert checks.unmoved == ["2.bias", "2.weight"]
    assert run(MLP(steps=20), lambda named: sgd(named, lr=0.0)).checks.parameters_moved is False


def test_canary_a_leaked_tensor_is_seen() -> None:
    class Leaks(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.__dict__.setdefault("kept", []).append(self.param_groups[0]["params"][0].grad.clone())
            return super().step(closure)

    assert run(MLP(steps=40), lambda named: Leaks([p for _, p in named], lr=0.01), steps=40).checks.state_grew


def test_canary_a_moved_frozen_weight_is_seen() -> None:
    class Partly(MLP):
        def model(self) -> nn.Module:
            model = super().model()
            model[0].weight.requires_grad_(False)  # type: ignore[index, union-attr]
            return model

    class Reaches(torch.optim.SGD):
        victim: torch.Tensor

        def step(self, closure: Any = None) -> Any:
            with torch.no_grad():
                self.victim.view(-1)[0] += 1e-3
            return super().step(closure)

    assert run(Partly(steps=5), steps=5).checks.frozen_unchanged
    training = Training(trial(Partly(steps=5), lambda named: Reaches([p for _, p in named], lr=0.01)))
    training.loop.optimizer.victim = training.loop.model[0].weight  # type: ignore[attr-defined, index]
    assert not training.run().checks.frozen_unchanged


def test_equal_changes_do_not_cancel_in_the_fingerprint() -> None:
    from optimeter.measure.monitor.probe import fingerprint

    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.ones(1 << 10, dtype=dtype)
        assert fingerprint(x) == fingerprint(x.clone())
        assert fingerprint(x) != fingerprint(x + 1)
        assert fingerprint(torch.zeros(1 << 10, dtype=dtype)) != fingerprint(x)
        swapped = torch.arange(8, dtype=dtype)
        assert fingerprint(swapped) != fingerprint(swapped.flip(0))


def test_an_optimizer_that_fake_tensors_cannot_follow_is_still_measured() -> None:
    class Peeks(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            assert self.param_groups[0]["params"][0].data_ptr() != 0, "needs a real tensor"
            return super().step(closure)

    blocks = run(MLP(steps=5), lambda named: Peeks([p for _, p in named], lr=0.01), steps=5)
    assert blocks.status == "ok"
    assert blocks.memory.predicted_state_bytes is None
    assert "fake tensors: " in blocks.missing["memory.predicted_state_bytes"]


def test_what_is_unexplained_is_told_of_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """State that is given up later was allocated and walked; a table that nobody walks was allocated alone."""
    held = {"state": 0, "hidden": 0}

    class Counts(Allocator):
        reason = None

        def held(self, settled: bool = False) -> int:
            return sum(held.values())

    class GivesUp(torch.optim.SGD):
        made = 0

        def step(self, closure: Any = None) -> Any:
            self.made += 1
            if self.made == 1:
                self.extra = torch.zeros(100)
                held.update(state=400, hidden=70)
            if self.made == 5:
                del self.extra
            return super().step(closure)

    monkeypatch.setattr(Cpu, "allocator", lambda device: Counts())
    blocks = run(MLP(steps=8), lambda named: GivesUp([p for _, p in named], lr=0.01), steps=8)
    assert blocks.memory.state_bytes == 0
    assert blocks.memory.allocator_state_bytes == 470
    assert blocks.memory.unexplained_bytes == 70


def test_every_size_of_the_mlp_trains() -> None:
    assert run(workloads.MLP("small", steps=3), steps=3).status == "ok"
