"""Curvature estimates in the run loop: when they are made, what they may touch, and who can be given them."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from optimeter import optimizers, workloads
from optimeter.measure.devices import device_for
from optimeter.measure.jobs.build import build_measure, build_workload
from optimeter.measure.jobs.child import recipe_of, settings_of
from optimeter.measure.jobs.parts import about
from optimeter.measure.methods.base import Trial
from optimeter.measure.records.schema import Findings
from tests.conftest import composed
from tests.trials import train

SCHEDULE: dict[str, Any] = {"steps": 10}
both = pytest.mark.parametrize("name", ["SophiaG", "SophiaH"])


def training(name: str, workload: workloads.Workload, lines: list | None = None, **settings: Any) -> Findings:
    write = (lines if lines is not None else []).append
    build = lambda named: getattr(optimizers, name)([p for _, p in named], lr=1e-3)  # noqa: E731
    return train(workload, build, write, **{"steps": 25, "hessian_every": 10} | settings)


@both
@pytest.mark.parametrize("steps", [1, 10, 25])
def test_estimates_are_made_and_timed_at_every_tenth_step(name: str, steps: int) -> None:
    lines: list[dict[str, Any]] = []
    blocks = training(name, workloads.MLP(steps=steps), lines, steps=steps)
    assert blocks.status == "ok"
    time = blocks.time
    assert time.estimator.n == math.ceil(steps / 10)
    assert time.forward.n == time.backward.n == time.step.n
    estimated = {line["step"]: line["estimator_seconds"] for line in lines if "estimator_seconds" in line}
    assert list(estimated) == list(range(1, steps + 1, 10))
    assert lines[-1]["elapsed"] == pytest.approx(sum(line["seconds"] for line in lines) + sum(estimated.values()))
    assert blocks.quality.evaluations[-1].seconds == pytest.approx(lines[-1]["elapsed"])
    assert blocks.memory.predicted_state_bytes == blocks.memory.state_bytes
    assert blocks.checks.parameters_moved


def test_without_estimates_there_is_no_clock_for_them() -> None:
    blocks = training("SophiaG", workloads.MLP(steps=5), steps=5, hessian_every=None)
    assert blocks.time.estimator is None


@both
@pytest.mark.parametrize(
    "workload",
    [workloads.Layer(shape=[12, 7], **SCHEDULE), workloads.Embedding(dim=4, batch=32, **SCHEDULE)],
    ids=["layer", "embedding"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_workload_with_labels_is_trained(name: str, workload: workloads.Workload, dtype: torch.dtype) -> None:
    blocks = training(name, workload, steps=12, dtype=dtype, accumulate=2)
    assert blocks.status == "ok"
    assert blocks.time.estimator.n == 2


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    losses = [training("SophiaG", workloads.MLP(steps=25), seed=seed).quality.final_loss for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_estimates_disturb_nothing_else() -> None:
    """An optimizer that throws them away trains as one that asks for none, in a model that draws and has gradients."""

    class Throws(torch.optim.SGD):
        curvature_from = "sampled_loss"
        seen: list[float] = []

        def update_hessian(self, loss: torch.Tensor, samples: int) -> None:
            assert all(p.grad is None for group in self.param_groups for p in group["params"])
            self.seen.append(loss.item())

    class Drops(workloads.MLP):
        def model(self) -> nn.Module:
            return nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))

    def final_loss(every: int | None) -> float | None:
        build = lambda named: Throws([p for _, p in named], lr=0.1)  # noqa: E731
        return train(Drops(steps=20), build, hessian_every=every).quality.final_loss

    assert final_loss(None) == final_loss(3)
    assert len(Throws.seen) == len(set(Throws.seen)) == 8  # seven of the run, one of the step that is watched after it


def refusal(*overrides: str) -> str | None:
    """Why the composed measure cannot be made, or None."""
    config = composed(*overrides)
    recipes = {part: recipe_of(part, config[part], False, "optimizer") for part in ("optimizer",)}
    trial = Trial(
        build_workload(config["workload"]),
        recipes["optimizer"],
        settings_of(config),
        device_for("cpu"),
        {"baseline": recipes["optimizer"]},
    )
    reason: str | None = build_measure(config["measure"]).fits(trial)
    return reason


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("optimizer=sophiag", "workload=toy"), "has no sampled_loss"),
        (("optimizer=sophiah", "workload=toy"), None),
        (("optimizer=sophiag", "workload=toy", "measure=step"), None),
        *[((f"optimizer={name}", f"workload={w}"), None) for name in ("sophiag", "sophiah") for w in ("mlp", "layer")],
        (("optimizer=sophiag", "workload=embedding"), None),
        (("optimizer=sophiah", "workload=embedding", "workload.sparse=true"), "dense gradients"),
        (("optimizer=adamw", "workload=mlp", "+optimizer.about.hessian_every=5"), "AdamW has no update_hessian"),
    ],
    ids=str,
)
def test_who_can_be_given_estimates(overrides: tuple[str, ...], reason: str | None) -> None:
    found = refusal(*overrides)
    assert found is None if reason is None else reason in str(found)


@both
def test_the_yaml_and_the_class_agree(name: str) -> None:
    spec = composed(f"optimizer={name.lower()}")["optimizer"]
    assert about(spec)["hessian_every"] == getattr(optimizers, name).hessian_every == 10
    defaults = getattr(optimizers, name)([nn.Parameter(torch.ones(1))]).defaults
    assert {key: spec[key] for key in ("gamma", "eps", "weight_decay")} == {
        key: defaults[key] for key in ("gamma", "eps", "weight_decay")
    }


def test_sophia_h_descends_the_toys_quartic() -> None:
    blocks = training("SophiaH", workloads.Toy(steps=25))
    assert blocks.quality.final_loss < blocks.quality.first_loss


@pytest.mark.parametrize(
    "workload", [workloads.MLP(steps=20), workloads.Embedding(steps=20)], ids=lambda w: type(w).__name__
)
def test_an_estimate_that_meets_nan_ends_the_run_as_diverged(workload: workloads.Workload) -> None:
    def build(named: Any) -> optimizers.SophiaG:
        return optimizers.SophiaG([p for _, p in named], lr=1e30)

    blocks = train(workload, build, hessian_every=1)
    assert blocks.status == "diverged"
    assert "not finite" in blocks.reason


@pytest.mark.parametrize("workload", [workloads.MLP(steps=1), workloads.Embedding(steps=1), workloads.T5(steps=1)])
def test_no_label_is_drawn_from_nan(workload: workloads.Workload) -> None:
    """A CPU raises there; CUDA asserts on the device, and nothing of the process can use it any more."""
    model = workload.model()
    batch = next(iter(workload.batches("train", 0)))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(torch.nan)
    loss, labels = workload.sampled_loss(model, batch, torch.Generator())
    assert loss.isnan()
    assert labels > 0


def test_another_error_of_an_estimate_is_an_error() -> None:
    class Fails(workloads.MLP):
        def sampled_loss(self, *given: Any) -> Any:
            raise RuntimeError("no labels today")

    with pytest.raises(RuntimeError, match="no labels today"):
        training("SophiaG", Fails(steps=3))
