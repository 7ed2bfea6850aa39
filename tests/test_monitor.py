"""OptimizerMonitor in a stranger's loop, and with a clock that the test turns."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from optimeter import OptimizerMonitor
from optimeter.measure.devices import Allocator, ReadBack
from optimeter.measure.devices.cpu import Cpu
from optimeter.measure.monitor.observation import Observation
from optimeter.measure.monitor.sampling import BUDGET, CALIBRATION_STEPS, Schedule
from optimeter.measure.monitor.timings import warm_up_steps
from optimeter.measure.records.fields import to_plain
from optimeter.workloads import MLP
from tests.conftest import no_synchronisation
from tests.trials import train


def model_and_data(width: int = 16) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 3))
    return model, torch.randn(20, 8), torch.randint(3, (20,))


def hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    counts = [len(model._forward_hooks), len(model._forward_pre_hooks), len(model._backward_hooks)]
    return sum(counts) + len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def stranger(steps: int = 5, before: bool = False, accumulate: int = 1, **options: Any) -> OptimizerMonitor:
    """An ordinary PyTorch loop with the monitor's two lines."""
    model, x, y = model_and_data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with OptimizerMonitor(model, optimizer, **options) as monitor:
        assert hooks(model, optimizer) == 4
        for _ in range(steps):
            for _ in range(accumulate):
                loss = nn.functional.cross_entropy(model(x), y) / accumulate
                loss.backward()
            if before:
                monitor.record(loss)
            optimizer.step()
            optimizer.zero_grad()
            if not before:
                monitor.record(loss)
    assert hooks(model, optimizer) == 0
    return monitor


@pytest.mark.parametrize("before", [False, True])
def test_a_strangers_loop_gets_the_blocks_of_the_record(before: bool, tmp_path: Path) -> None:
    monitor = stranger(before=before, sample_every=1)
    summary = monitor.summary()
    assert summary["parameters"] == {"count": 195, "trainable": 195, "bytes": 780}
    memory = summary["memory"]
    assert memory["state_bytes"] == 2 * 780 + 4 * 4
    assert memory["by_role"] == {"first_moment": 780, "second_moment": 780, "step": 16}
    assert memory["gradient_bytes"] == 780
    time = summary["time"]
    assert time["step"]["n"] == 4
    assert time["first_step"] > 0
    parts = sum(time[part]["median"] for part in ("forward", "backward", "optimizer"))
    assert 0 < parts <= 1.5 * time["step"]["median"]
    assert [line["step"] for line in monitor.lines] == [1, 2, 3, 4, 5]
    assert monitor.lines[0]["loss"] > monitor.lines[-1]["loss"]
    monitor.plot(tmp_path / "trends.png")
    assert (tmp_path / "trends.png").read_bytes().startswith(b"\x89PNG")


def test_the_numbers_are_those_of_the_gradients_and_weights() -> None:
    model, x, y = model_and_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with OptimizerMonitor(model, optimizer, sample_every=1) as monitor:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        optimizer.step()
        monitor.record(loss, extra=torch.tensor(7.0))
    line = monitor.lines[0]
    assert line["gradient"]["norm"] == pytest.approx(gradients.norm().item(), rel=1e-6)
    assert line["gradient"]["mean"] == pytest.approx(gradients.mean().item(), abs=1e-8)
    assert line["gradient"]["std"] == pytest.approx(gradients.std(correction=0).item(), rel=1e-5)
    assert line["update_norm"] == pytest.approx(0.5 * gradients.norm().item(), rel=1e-5)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert line["weight_norm"] == pytest.approx(weights.norm().item(), rel=1e-6)
    assert (line["lr"], line["loss"], line["extra"]) == (0.5, loss.item(), {"extra": 7.0})
    assert line["gradient"]["nonfinite"] == 0


def test_the_update_norm_of_a_large_tensor_is_estimated() -> None:
    model = nn.Linear(700, 900, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with OptimizerMonitor(model, optimizer) as monitor:
        model(torch.randn(4, 700, generator=torch.Generator().manual_seed(0))).square().sum().backward()
        exact = model.weight.grad.norm().item()
        optimizer.step()
        monitor.record(1.0)
    assert monitor.lines[0]["update_norm"] == pytest.approx(exact, rel=0.1)
    assert monitor.lines[0]["updated"] == pytest.approx(700 * 900, rel=1e-6)


def test_only_elements_that_a_step_changed_are_counted() -> None:
    embedding = nn.Embedding(100, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(embedding.parameters())
    with OptimizerMonitor(embedding, optimizer, sample_every=1) as monitor:
        for rows in ([3, 7, 7], [5]):
            embedding(torch.tensor(rows)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.record(1.0)
    assert [line["updated"] for line in monitor.lines] == [8, 4], "two rows, then one"


class Decaying(torch.optim.SparseAdam):
    """Moves what it should leave alone, and replaces its state."""

    def step(self, closure: Any = None) -> None:
        for p, state in self.state.items():
            state["exp_avg"] = state["exp_avg"] * 0.9
            p.data.mul_(0.5)
        super().step(closure)


@pytest.mark.parametrize("optimizer_class", [torch.optim.SparseAdam, Decaying])
def test_what_changes_in_rows_without_a_gradient_is_counted(optimizer_class: Any) -> None:
    embedding = nn.Embedding(6000, 4, sparse=True)  # more elements than are looked at
    optimizer = optimizer_class(embedding.parameters())
    with OptimizerMonitor(embedding, optimizer, sample_every=1) as monitor:
        for rows in (range(3000), range(100), range(3000, 3001)):
            optimizer.load_state_dict(optimizer.state_dict())  # the state is another one from now on
            embedding(torch.tensor(rows)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.record(1.0)
    first, *later = monitor.lines
    assert first["strayed"] == 0
    assert "strayed_moments" not in first, "there were none yet"
    strays = optimizer_class is Decaying
    moments, own = ([2900 * 4, 3000 * 4], [5900 * 4, 5999 * 4]) if strays else ([0, 0], [0, 0])
    assert [line["strayed_moments"] for line in later] == pytest.approx(moments, rel=0.01)
    assert [line["strayed"] for line in later] == pytest.approx(own, rel=0.01)


def test_sparse_state_and_empty_tables_are_passed_over() -> None:
    tables = nn.ModuleList([nn.Embedding(5, 2, sparse=True), nn.Embedding(0, 2, sparse=True)])
    optimizer = torch.optim.SGD(tables.parameters(), lr=0.1, momentum=0.9)  # keeps the first gradient, a sparse one
    with OptimizerMonitor(tables, optimizer, sample_every=1) as monitor:
        for row in (1, 1):
            (tables[0](torch.tensor([row])).sum() + tables[1](torch.zeros(0, dtype=torch.long)).sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.record(1.0)
    assert [line["strayed"] for line in monitor.lines] == [0, 0]
    assert "strayed_moments" not in monitor.lines[1]


def test_nonfinite_gradients_are_counted() -> None:
    model, x, _ = model_and_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with OptimizerMonitor(model, optimizer) as monitor:
        model(x).sum().backward()
        model[0].weight.grad[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        optimizer.step()
        monitor.record(torch.tensor(torch.nan))
    line = monitor.lines[0]
    assert line["gradient"]["nonfinite"] == 3
    assert math.isnan(line["loss"])


def test_accumulation_sums_times_and_counts_one_step() -> None:
    monitor = stranger(steps=3, accumulate=4)
    assert len(monitor.lines) == 3
    assert len(monitor.timings.seconds["forward"]) == 3


def test_a_subclass_that_calls_its_parents_step_counts_once() -> None:
    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    model, x, _ = model_and_data()
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # now the parent's step is hooked as well
    optimizer = Twice(model.parameters(), lr=0.1)
    with OptimizerMonitor(model, optimizer) as monitor:
        for _ in range(5):
            model(x).sum().backward()
            optimizer.step()
            monitor.record(0.0)
    assert [line["step"] for line in monitor.lines] == [1, 2, 3, 4, 5]


def test_closures_schedulers_evaluation_and_nested_calls() -> None:
    model, x, y = model_and_data()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    with OptimizerMonitor(model, optimizer) as monitor:
        for _ in range(3):

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            scheduler.step()
            with torch.no_grad():
                model(x)
            monitor.record(loss)
    assert [line["lr"] for line in monitor.lines] == [1.0, 0.5, 0.25]
    assert all(line["forward_seconds"] > 0 for line in monitor.lines)


def test_a_step_without_a_loss_is_still_a_line() -> None:
    model, x, _ = model_and_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with OptimizerMonitor(model, optimizer) as monitor:
        for _ in range(3):
            model(x).sum().backward()
            optimizer.step()
    assert [(line["step"], line["loss"]) for line in monitor.lines] == [(1, None), (2, None), (3, None)]
    with pytest.raises(RuntimeError, match="entered"):
        OptimizerMonitor(model, optimizer).record(1.0)


class RaisesOnce(torch.optim.SGD):
    """Fails at its third step, as one that runs out of memory does."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        if self.steps == 3:
            raise RuntimeError("out of memory")
        return super().step(closure)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_step_that_raises_costs_that_step_alone(recorded: bool) -> None:
    model, x, y = model_and_data()
    optimizer = RaisesOnce(model.parameters(), lr=0.01)
    with OptimizerMonitor(model, optimizer) as monitor:
        for _ in range(20):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            try:
                optimizer.step()
            except RuntimeError:
                if not recorded:
                    continue
            monitor.record(loss)
    assert len(monitor.lines) == (19 if recorded else 18), (
        "where the failure was not recorded, the next one is lost too"
    )
    assert [line["step"] for line in monitor.lines] == list(range(1, len(monitor.lines) + 1))


def test_a_loss_that_does_not_call_the_model_has_no_false_times() -> None:
    model, x, _ = model_and_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with OptimizerMonitor(model, optimizer) as monitor:
        for _ in range(5):
            loss = nn.functional.linear(x, model[0].weight).square().mean()
            loss.backward()
            optimizer.step()
            monitor.record(loss)
    time = monitor.summary()["time"]
    assert (time["step"], time["forward"], time["backward"], time["optimizer_share"]) == (None, None, None, None)
    assert time["optimizer"]["n"] == 4
    assert monitor.missing() == dict.fromkeys(
        ("time.step", "time.forward", "time.backward"), "no forward of the model was seen"
    )
    assert monitor.lines[-1]["elapsed"] is None


def test_a_closures_time_is_the_steps_and_its_gradients_are_its_own() -> None:
    model, x, y = model_and_data()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1)
    with OptimizerMonitor(model, optimizer, sample_every=1) as monitor:
        for _ in range(3):

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            monitor.record(optimizer.step(closure))
            monitor.settle()
            norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()  # type: ignore[union-attr]
            assert monitor.lines[-1]["gradient"]["norm"] == pytest.approx(norm.item())
    time = monitor.summary()["time"]
    assert time["step"]["n"] == 2
    assert (time["backward"], time["optimizer"], time["optimizer_share"]) == (None, None, None)
    assert monitor.missing()["time.optimizer"] == "the step calls a closure"


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.bfloat16, torch.float64)], ids=str)
def test_parameters_of_two_precisions(dtypes: tuple[torch.dtype, ...]) -> None:
    model = nn.Module()
    model.weights = nn.ParameterList([nn.Parameter(torch.ones(4, dtype=dtype)) for dtype in dtypes])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with OptimizerMonitor(model, optimizer, sample_every=1) as monitor:
        for p in model.weights:
            p.grad = torch.full_like(p, 3)
        optimizer.step()
        monitor.record(1.0)
    line = monitor.lines[0]
    assert line["gradient"]["norm"] == pytest.approx(3 * 8**0.5)
    assert line["gradient"]["std"] is None, "all are equal: less than the sums can tell"
    assert line["update_norm"] == pytest.approx(6e-9), "fp64 moved, by less than fp32 can tell"


def test_an_exception_in_the_loop_leaves_no_hook() -> None:
    model, x, _ = model_and_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ZeroDivisionError), OptimizerMonitor(model, optimizer):
        model(x).sum().backward()
        1 / 0  # noqa: B018
    assert hooks(model, optimizer) == 0


@pytest.mark.parametrize("value", [0, -1, "often", 1.5, True])
def test_bad_sampling_is_refused(value: Any) -> None:
    model, *_ = model_and_data()
    with pytest.raises(ValueError, match="whole number"):
        OptimizerMonitor(model, torch.optim.SGD(model.parameters()), sample_every=value)


# ------------------------------------------------------------------------------------------- a turned clock


class Turned(Cpu):
    """A device whose clock stands still until something takes time."""

    now = 0.0

    def __init__(self, counter: Allocator | None = None) -> None:
        super().__init__()
        self.counter = counter

    def allocator(self) -> Allocator:
        return self.counter or super().allocator()

    def stamp(self) -> float:
        return Turned.now

    def seconds(self, start: float, end: float) -> float:
        return end - start


class Timed(torch.optim.SGD):
    """A step of 10 s; with `sleep`, a tenth more."""

    def __init__(self, params: Any, sleep: float = 0.0) -> None:
        super().__init__(params, lr=0.1)
        self.sleep = sleep

    def step(self, closure: Any = None) -> Any:
        Turned.now += 10 * (1 + self.sleep)
        return super().step(closure)


class Slow(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Turned.now += 3
        return super().forward(x)


class Looks(Allocator):
    """One that counts, and takes 400 s to be asked."""

    reason = None

    def phase_ends(self, phase: str, scratch: int = 0) -> None:
        Turned.now += 400

    def begin(self) -> None:
        Turned.now += 400


def turned_run(sleep: float = 0.0, allocator: Allocator | None = None) -> dict[str, Any]:
    model = Slow(2, 1)
    optimizer = Timed(model.parameters(), sleep)
    monitor = OptimizerMonitor(model, optimizer, sample_every=1, device=Turned(allocator))
    before, after = monitor.sampler.before, monitor.sampler.after
    monitor.sampler.before = lambda one: [setattr(Turned, "now", Turned.now + 1000), before(one)][1]  # type: ignore[method-assign, assignment]
    monitor.sampler.after = lambda one: [setattr(Turned, "now", Turned.now + 1000), after(one)][1]  # type: ignore[method-assign, assignment]
    with monitor:
        for _ in range(4):
            loss = model(torch.ones(1, 2)).sum()
            loss.backward()
            Turned.now += 5  # the backward
            with monitor.phase("estimator"):
                model(torch.ones(1, 2))
                Turned.now += 200
            optimizer.step()
            monitor.record(loss)
            with monitor.phase("evaluation"):
                Turned.now += 700
    return monitor.summary()["time"]


@pytest.mark.parametrize("allocator", [None, Looks()])
def test_each_clock_gets_its_own_time_and_the_monitors_work_is_nobodys(allocator: Allocator | None) -> None:
    time = turned_run(allocator=allocator)
    medians = {name: time[name]["median"] for name in ("forward", "backward", "optimizer", "step", "estimator")}
    assert medians == {"forward": 3, "backward": 5, "optimizer": 10, "step": 18, "estimator": 203}
    assert time["optimizer_share"] == pytest.approx(10 / 18)


def test_canary_a_sleep_of_a_tenth_in_the_step_is_seen() -> None:
    assert turned_run(sleep=0.1)["optimizer"]["median"] == pytest.approx(1.1 * turned_run()["optimizer"]["median"])


def test_the_schedule_spends_its_budget_and_no_more() -> None:
    schedule = Schedule("auto")
    assert all(schedule.due(index) for index in range(1, CALIBRATION_STEPS + 1))
    assert not schedule.due(CALIBRATION_STEPS + 1), "on a GPU the first of them are read back only later"
    for _ in range(CALIBRATION_STEPS):
        schedule.learn(sampling_seconds=1.0, step_seconds=10.0)
    assert 0.1 / schedule.every <= BUDGET
    assert 0.1 / (schedule.every / 2.5) > BUDGET
    assert [index for index in range(1, 120) if schedule.due(index)] == [1, 51, 101]
    fixed = Schedule(7)
    fixed.learn(1e9, 1.0)
    assert [index for index in range(1, 20) if fixed.due(index)] == [1, 8, 15]


def test_warm_up_never_takes_everything() -> None:
    assert [warm_up_steps(steps) for steps in (0, 1, 2, 9, 100, 10_000)] == [0, 0, 1, 1, 10, 50]


def test_values_are_read_back_in_order() -> None:
    read_back = ReadBack()
    for index in (1, 2):
        read_back.add(
            Observation(index, 0.0, False, losses=[torch.tensor(float(index)), 3.0], extra={"x": torch.tensor(9.0)})
        )
    found = list(read_back.collect())
    assert [(one.index, one.losses, one.extra) for one in found] == [
        (1, [1.0, 3.0], {"x": 9.0}),
        (2, [2.0, 3.0], {"x": 9.0}),
    ]
    assert not list(read_back.collect(wait=True))


def test_the_run_loop_and_a_stranger_see_the_same() -> None:
    """Show 8: an ordinary loop with two lines added, beside the harness's own run of the same thing."""
    workload, steps = MLP(steps=60), 60
    blocks = train(workload, lambda named: torch.optim.AdamW([p for _, p in named]))
    torch.manual_seed(0)
    model = workload.model()
    optimizer = torch.optim.AdamW(model.parameters())
    with OptimizerMonitor(model, optimizer) as monitor:
        for _, (images, labels) in zip(range(steps), workload.batches("train", 0), strict=False):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.record(loss)
    summary = monitor.summary()
    assert summary["parameters"] == to_plain(blocks.parameters)
    for key in ("state_bytes", "by_role", "by_dtype", "state_8bit_share", "gradient_bytes"):
        assert summary["memory"][key] == getattr(blocks.memory, key)
    assert set(summary["time"]) == set(to_plain(blocks.time))
    last = [line["loss"] for line in monitor.lines[-6:]]
    assert sum(last) / 6 == pytest.approx(blocks.quality.train_loss, rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_nothing_waits_for_the_device() -> None:
    model = nn.Linear(64, 64).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x = torch.randn(8, 64, device="cuda")
    with OptimizerMonitor(model, optimizer, sample_every=2) as monitor:
        for step in range(200):
            with no_synchronisation() if step >= 5 else nullcontext():
                loss = model(x).square().sum()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                monitor.record(loss)
    summary = monitor.summary()
    assert len(monitor.lines) == 200
    assert summary["memory"]["allocator_state_bytes"] == summary["memory"]["state_bytes"]
    assert set(summary["memory"]["peak_bytes"]) >= {"forward", "backward", "step", "overall"}
