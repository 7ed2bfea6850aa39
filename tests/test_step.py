"""measure=step: verdicts and stopping on clocks that the test turns, what a step must move, and small real runs."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from optimeter.conf.shapes import parse_shapes
from optimeter.measure.devices import device_for
from optimeter.measure.jobs.outcomes import Refused
from optimeter.measure.methods.bandwidth import copy_rates
from optimeter.measure.methods.base import Recipe, Trial
from optimeter.measure.methods.contestant import Contestant, minimum_bytes
from optimeter.measure.methods.gradients import gradients_for
from optimeter.measure.methods.loop import Loop
from optimeter.measure.methods.step import (
    BASELINE,
    BELIEVED,
    CANDIDATE,
    CONFIDENCE,
    LEAST,
    Step,
    make_pairs,
    notes,
    shapes_of,
    verdict,
)
from optimeter.measure.records.fields import to_plain
from optimeter.measure.records.schema import Findings
from optimeter.workloads import MLP, Embedding
from optimeter.workloads.shapes import Shapes
from tests.conftest import Ran
from tests.trials import ignored, trial

QUICK = Step(seconds=0.05, precision=0.01, delta=0.05, block_seconds=0.001)
RATES = [1e9]


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.80, 0.94, "FAST"),
        (0.80, 0.95, "AMBG"),
        (1.06, 1.20, "SLOW"),
        (1.05, 1.20, "AMBG"),
        (0.95, 1.05, "SAME"),
        (0.99, 1.01, "SAME"),
        (0.94, 1.01, "AMBG"),
        (0.50, 2.00, "AMBG"),
    ],
)
def test_a_verdict_is_of_the_whole_interval(low: float, high: float, word: str) -> None:
    assert verdict(low, high, 0.05) == word


class Turned:
    """A clock that blocks turn: each takes its seconds, times noise."""

    def __init__(self, noise: float, seed: int = 0) -> None:
        self.time, self.noise, self.draw = 0.0, noise, random.Random(seed)

    def block(self, seconds: float) -> Callable[[], float]:
        def run() -> float:
            taken = seconds * math.exp(self.draw.gauss(0, self.noise))
            self.time += taken
            return taken

        return run

    def pairs(self, ratio: float, seconds: float = 1000.0, precision: float = 0.01) -> Any:
        blocks = {BASELINE: self.block(1.0), CANDIDATE: self.block(ratio)}
        return make_pairs(blocks, seconds, precision, seed=0, now=lambda: self.time)


@pytest.mark.parametrize(("ratio", "word"), [(0.5, "FAST"), (0.9, "FAST"), (1.0, "SAME"), (1.1, "SLOW"), (3.0, "SLOW")])
def test_known_ratios_get_their_verdict(ratio: float, word: str) -> None:
    found = Turned(noise=0.02).pairs(ratio)
    middle, low, high = (1 + value for value in found.interval(CONFIDENCE))
    assert low <= middle <= high
    assert middle == pytest.approx(ratio, rel=0.03)
    assert verdict(low, high, 0.05) == word


def test_pairs_end_when_the_interval_is_narrow_or_the_time_is_spent() -> None:
    assert len(Turned(noise=0.0).pairs(1.0).log_ratios) == BELIEVED
    noisy = Turned(noise=0.5)
    found = noisy.pairs(1.0, seconds=60, precision=1e-6)
    assert 60 <= noisy.time < 100
    assert len(found.log_ratios) > BELIEVED
    assert len(Turned(noise=0.5).pairs(50.0, seconds=10).log_ratios) == LEAST, "whatever they take"


def test_canary_equals_under_noise_are_not_told_apart() -> None:
    found = [Turned(0.5, seed).pairs(1.0, seconds=5).interval(CONFIDENCE) for seed in range(30)]
    assert [verdict(1 + low, 1 + high, 0.05) for _, low, high in found].count("AMBG") >= 29


@pytest.mark.parametrize(
    ("p", "g", "state", "total"),
    [
        (4, 4, 0, 12),  # SGD, and Adafactor where each tensor stays in the cache
        (4, 4, 8, 28),  # AdamW
        (2, 2, 8, 22),  # AdamW with bf16 weights and fp32 state
        (2, 2, 4, 14),  # AdamW all in bf16
        (4, 4, 12, 36),  # AMSGrad
        (4, 4, 4, 20),  # Lion, Muon, CAME
        (4, 4, 2.03125, 16.0625),  # AdamW with 8-bit state in blocks of 256
        (2, 2, 2.03125, 10.0625),
    ],
)
def test_the_least_bytes_are_the_literatures(p: float, g: float, state: float, total: float) -> None:
    assert minimum_bytes(p, g, state) == total


def test_the_least_bytes_of_a_sparse_step_are_those_of_its_rows() -> None:
    rows, touched, dim = 1000, 10, 16
    gradient = touched * (dim * 4 + 8)
    moved = minimum_bytes(rows * dim * 4, gradient, rows * dim * 8, touched / rows)
    assert moved / (touched * dim) == pytest.approx(28 + 8 / dim)


def test_shapes_are_read_and_written_alike() -> None:
    assert parse_shapes("8*1048576+256*8x1024+3x4x5") == [(8, [1048576]), (256, [8, 1024]), (1, [3, 4, 5])]
    assert parse_shapes(7) == [(1, [7])]
    text = "2*6x5+3"
    model = Shapes(parse_shapes(text), steps=1).model()
    assert [tuple(p.shape) for p in model.parameters()] == [(6, 5), (6, 5), (3,)]
    assert shapes_of(list(model.parameters())) == text
    with pytest.raises(NotImplementedError, match="only measure=step"):
        Shapes([(1, [2])], steps=1).batches("train", 0)


@pytest.mark.parametrize(
    "value", ["", "8x", "x8", "0", "8*0", "0*8", "-3", "8,9", "8**2", "2*3*4", 1.5, True, [[3]], "8 9"]
)
def test_other_shapes_are_refused_with_the_form(value: Any) -> None:
    with pytest.raises(Refused, match=r"measure\.shapes=8\*1048576\+256\*8x1024") as refusal:
        parse_shapes(value)
    assert "\n" not in str(refusal.value)


def side(build: Any = torch.optim.SGD, name: str = "it", **what: Any) -> Recipe:
    arguments = {"lr": 0.01} | what.pop("arguments", {})
    return Recipe(name, lambda named: build([p for _, p in named], **arguments), **what)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimeter.measure.methods.step.copy_rates", lambda device: RATES)


def pair(candidate: Recipe, baseline: Recipe | None = None, workload: Any = None, progress: Any = ignored) -> Trial:
    others = {BASELINE: baseline or side(name="base")}
    workload = workload or Shapes([(2, [8, 4]), (1, [3])], steps=1)
    return replace(trial(workload, candidate.build, progress=progress, others=others), optimizer=candidate)


def compared(candidate: Recipe, baseline: Recipe | None = None, workload: Any = None) -> Findings:
    return QUICK.run(pair(candidate, baseline, workload))


@pytest.mark.usefixtures("quick")
def test_a_real_comparison_has_every_part() -> None:
    news: list[tuple] = []
    sides = side(torch.optim.AdamW, "adamw"), side(name="sgd")
    findings = QUICK.run(pair(*sides, workload=MLP(steps=1), progress=news.append))
    found = findings.step
    assert found.verdict in ("FAST", "SLOW", "SAME", "AMBG")
    assert found.low <= found.ratio <= found.high
    assert len(found.log_ratios) == found.pairs == found.candidate.seconds.n == len(news) * 4
    for one in (found.candidate, found.baseline):
        assert one.host_seconds == one.seconds, "on a CPU"
        assert one.bytes_per_second == pytest.approx(one.minimum_bytes / one.seconds.median)
        assert one.copy_share == pytest.approx(one.bytes_per_second / RATES[0])
    assert found.candidate.bytes_per_parameter == pytest.approx(28, abs=0.01)
    assert found.baseline.bytes_per_parameter == pytest.approx(12)
    assert "host and device time are the same" in found.notes["clock"]
    checks = to_plain(findings.checks)
    assert checks.pop("frozen_unchanged") is checks.pop("state_grew") is None
    assert checks == {"parameters_moved": True, "unmoved": [], "finite": True, "baseline_sound": True}
    assert findings.memory.predicted_state_bytes == findings.memory.state_bytes
    assert findings.time.first_step > 0
    assert findings.steps > found.pairs * found.candidate.block_steps


class Idle(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return None


class Spoils(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        super().step()
        for p in self.param_groups[0]["params"]:
            p.detach().fill_(torch.nan)


@pytest.mark.usefixtures("quick")
def test_canary_a_side_that_does_not_work_is_invalid() -> None:
    checks = compared(side(Idle)).checks
    assert (checks.parameters_moved, checks.unmoved) == (False, ["0", "1", "2"])
    assert checks.baseline_sound
    assert not compared(side(), side(Idle)).checks.baseline_sound
    assert not compared(side(), side(Spoils)).checks.baseline_sound
    assert not compared(side(Spoils)).checks.finite


@pytest.mark.usefixtures("quick")
def test_a_closure_is_given_to_who_needs_one_and_curvature_is_spoken_of() -> None:
    losses = []

    class Needs(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            losses.append(float(closure()))
            return super().step()

    blocks = compared(side(Needs, closure=True, hessian_every=10))
    assert set(losses) == {1.0}
    assert "ordinary steps alone" in blocks.step.notes["curvature"]


def contestant(recipe: Recipe, workload: Any) -> Contestant:
    made = pair(recipe, workload=workload)
    loop = Loop(made.workload, recipe, made.settings, made.device)
    return Contestant(loop, gradients_for(loop), [p.detach().clone() for p in loop.parameters])


def test_work_done_now_and_then_is_spoken_of() -> None:
    one = contestant(side(), Shapes([(1, [3, 2]), (1, [2])], steps=1))
    one.seconds, one.host_seconds = [1.0, 1.0, 1.0, 9.0], [1.0] * 4
    for p in one.parameters:
        p.grad = torch.zeros_like(p)
    part = one.side(1e9, None)
    assert part.mean_seconds == 3.0
    assert part.seconds is not None
    assert part.seconds.median == 1.0
    assert part.fits_in_cache is None
    assert "the mean step is 3.00 times the median one" in notes([one], [part])["uneven"]


def test_blocks_start_alike_and_gradients_do_not() -> None:
    seen: list[torch.Tensor] = []
    begun: list[torch.Tensor] = []

    class Looks(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            (p,) = self.param_groups[0]["params"]
            seen.append(p.grad.clone())
            begun.append(p.detach().clone())
            p.grad.fill_(7.0)  # as Grams and schedule-free methods do
            return super().step()

    one = contestant(side(Looks), Shapes([(1, [40])], steps=1))
    for _ in range(3):
        one.block()
    assert all(torch.equal(value, one.start_values[0]) for value in begun[::2])
    assert all((gradient != 7).all() for gradient in seen[::2])
    assert not torch.equal(seen[0], seen[2])
    assert len(seen) == 6, "a step that does not count, and one that does"


@pytest.mark.usefixtures("quick")
def test_sparse_gradients_touch_the_rows_that_the_workload_touches() -> None:
    workload = Embedding(rows=20_000, dim=8, batch=16, sparse=True, steps=1)
    blocks = compared(side(torch.optim.SparseAdam, "a"), side(torch.optim.SparseAdam, "b"), workload)
    found = blocks.step
    assert found.gradients == "sparse"
    assert 0 < found.candidate.touched_elements < 0.02 * blocks.parameters.count
    assert 28 < found.candidate.bytes_per_parameter < 60, "28, the rows' numbers, and rows that come twice"
    assert blocks.checks.parameters_moved


def test_a_copy_has_a_rate() -> None:
    rates = copy_rates(device_for("cpu"))
    assert len(rates) >= 5
    assert all(rate > 0 for rate in rates)


def test_a_run_has_its_record_and_the_baseline_makes_another(bench: Callable[..., Ran], tmp_path: Path) -> None:
    run = ("measure=step", "optimizer=adamw", "measure.shapes=2*8x16+5", "measure.seconds=0.05")
    ran = bench(*run)
    assert ran.statuses == ["ok"], ran.stderr
    (result,) = ran.records
    assert (result["measure"], result["workload"], result["size"]) == ("step", "shapes", None)
    assert result["step"]["baseline"]["optimizer"] == "torch_adamw"
    assert result["step"]["shapes"] == "2*8x16+5"
    assert result["config"]["measure"]["optimizers"]["baseline"]["_target_"] == "torch.optim.AdamW"
    assert result["time"]["wall"] > 0
    assert bench(*run).statuses == ["kept"]
    assert bench(*run, "baseline=adam").statuses == ["ok"]
    (folder,) = (path.parent for path in tmp_path.glob("runs/*/*/result.json") if '"adam"' in path.read_text())
    again = bench(f"replay={folder}", "name=again")
    assert again.statuses == ["ok"], again.stderr
    (replayed,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/again/*/result.json"))
    assert replayed["run"] == folder.name.rpartition("-")[2]
    assert replayed["step"]["baseline"]["optimizer"] == "adam"
    assert bench(f"replay={folder}", "baseline=torch_adamw").returncode == 1


def test_a_sweep_over_optimizers_and_shapes(bench: Callable[..., Ran]) -> None:
    ran = bench("-m", "measure=step", "optimizer=adam,sparse_adam", "measure.shapes=3,2*4x4",
                "measure.seconds=0.02")  # fmt: skip
    assert ran.statuses == ["ok"] * 2 + ["unsupported"] * 2, ran.stderr
    assert len({record["run"] for record in ran.records}) == 4


def test_the_baseline_makes_no_other_training_run(bench: Callable[..., Ran]) -> None:
    run = ("optimizer=adam", "workload=toy", "steps=3")
    assert bench(*run).statuses == ["ok"]
    assert bench(*run, "baseline=adam").statuses == ["kept"]


REFUSED = [
    (["baseline=torch_adamww"], "no such optimizer; did you mean torch_adamw?"),
    (["baseline=any"], "baseline=any names no class"),
    (["measure.shapes=8x0"], "measure.shapes must be shapes joined by +"),
    (["workload=toy", "measure.shapes=8"], "workload=toy: measure.shapes stands in the workload's place"),
    (["measure.delta=2"], "measure.delta must be a number above 0 and below 1, not 2"),
    (["measure.seconds=0"], "measure.seconds must be a number above 0"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_bad_input_is_one_line(bench: Callable[..., Ran], tmp_path: Path, arguments: list[str], words: str) -> None:
    ran = bench("measure=step", *arguments)
    assert ran.returncode == 1
    assert words in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_baseline_of_the_other_kind_is_unsupported(bench: Callable[..., Ran]) -> None:
    ran = bench("measure=step", "optimizer=sparse_adam", "workload=embedding")
    assert ran.statuses == ["unsupported"]
    assert "baseline=torch_adamw: it takes dense gradients" in ran.stdout
