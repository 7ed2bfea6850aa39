"""Bytes of live tensors: against sizes that are known, and a run's peaks by phase."""

from typing import Any

import pytest
import torch
from torch import nn

from optimeter import optimizers, workloads
from optimeter.measure.memory.live import LiveBytes
from optimeter.measure.memory.prediction import predict
from optimeter.measure.records.schema import Findings
from tests.trials import train

N = 10_000
SCALARS = 64  # bytes of the losses beside the tensors


def test_what_lives_is_counted_until_it_is_freed() -> None:
    held = torch.zeros(N)
    with LiveBytes([held, held.view(100, 100), nn.Parameter(held)]) as live:
        assert live.live == 4 * N
        doubled = held * 2
        held.mul_(3)
        part = doubled[5:]
        assert live.live == 8 * N
        del doubled
        assert live.live == 8 * N, "a view keeps its storage"
        del part
        assert (live.live, live.peak) == (4 * N, 8 * N)
        sparse = torch.sparse_coo_tensor(torch.zeros(1, 5, dtype=torch.long), torch.ones(5), (N,)) * 2
        assert 4 * N + 5 * (8 + 4) <= live.live < 5 * N
        del sparse, held
        assert live.live == 0


class Product(workloads.Workload):
    """The sum of w ⊙ x: one product in the forward, one gradient in the backward."""

    def model(self) -> nn.Module:
        return nn.ParameterDict({"w": torch.randn(N)})

    def batches(self, split: str, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        batches = (torch.randn(N, generator=generator) for _ in range(100))
        return [next(batches)] if split == "held_out" else batches

    def loss(self, model: Any, batch: torch.Tensor) -> torch.Tensor:
        return (model["w"] * batch).sum()


def trained(optimizer: Any, workload: workloads.Workload | None = None, **settings: Any) -> Findings:
    return train(workload or Product(steps=3), lambda named: optimizer([p for _, p in named]), **settings)


def test_the_peaks_of_a_known_step() -> None:
    memory = trained(optimizers.AdamW).memory
    vectors = {"forward": 4 + 1, "backward": 4 + 1, "step": 4 + 2, "evaluation": 4 + 2, "overall": 6}
    assert memory.peak_source == "tensors"
    assert memory.peak_bytes is not None
    for (
        phase,
        count,
    ) in vectors.items():  # w, m, v and x; the product; gradient and denominator; another x, a product
        assert 0 <= memory.peak_bytes[phase] - 4 * N * count < SCALARS, phase
    assert memory.transient_bytes == 4 * N


def test_gradients_that_wait_are_part_of_the_next_forward() -> None:
    peaks = trained(optimizers.AdamW, accumulate=2).memory.peak_bytes
    assert 0 <= peaks["forward"] - 4 * N * 7 < SCALARS  # w, m, v, two batches, the first's gradient, a product


@pytest.mark.parametrize("name", ["Adam", "Lion", "Adafactor", "CAME"])
def test_a_real_step_takes_what_a_step_of_fake_tensors_does(name: str) -> None:
    workload = workloads.Layer(shape=[64, 128], steps=3)
    found = trained(getattr(optimizers, name), workload).memory.transient_bytes
    shapes = [("weight", nn.Parameter(torch.zeros(64, 128)))]
    expected = predict(lambda named: getattr(optimizers, name)([p for _, p in named]), shapes).transient_bytes
    assert found == pytest.approx(expected, rel=0.01)


def test_the_estimator_is_a_phase_of_its_own() -> None:
    peaks = trained(optimizers.SophiaG, workloads.MLP(steps=3), hessian_every=2).memory.peak_bytes
    assert set(peaks) == {"estimator", "forward", "backward", "step", "evaluation", "overall"}
    assert peaks["estimator"] > peaks["step"]


def test_where_tensors_cannot_be_followed_the_reason_is_told() -> None:
    class Stubborn(torch.optim.SGD):
        calls = 0

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            if self.calls > 3:
                raise RuntimeError("three are enough\nand more")
            return super().step(closure)

    blocks = trained(Stubborn)
    assert (blocks.status, blocks.memory.peak_bytes) == ("ok", None)
    assert blocks.missing["memory.peak_bytes"] == "RuntimeError: three are enough"
    closed = trained(torch.optim.LBFGS, closure=True)
    assert closed.missing["memory.peak_bytes"] == "the step calls a closure"
