"""NVML and CUDA's clocks where there is no GPU: what is missing says why; what is there is summed up."""

import os
import sys
import time
import types
from importlib.metadata import version
from typing import Any

import pytest
import torch

from optimeter import OptimizerMonitor
from optimeter.measure.devices import device_for
from optimeter.measure.devices.cpu import Cpu
from optimeter.measure.devices.cuda import READ_BACK_EVERY, Cuda, CudaAllocator, CudaReadBack
from optimeter.measure.devices.nvml import NvmlWatch
from optimeter.measure.jobs.environment import describe, git_state, scrub
from optimeter.measure.monitor.observation import Observation

GPU = torch.device("cuda")


def fake_nvml(**broken: Exception) -> Any:
    """A management library with one GPU that heats up by a degree a look."""
    looks = iter(range(1000))

    def call(name: str, value: Any) -> Any:
        def answer(*_: Any) -> Any:
            if name in broken:
                raise broken[name]
            return value() if callable(value) else value

        return answer

    module: Any = types.ModuleType("pynvml")
    module.NVMLError = RuntimeError
    module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM, module.NVML_TEMPERATURE_GPU = 1, 2, 0
    answers = {
        "nvmlInit": None,
        "nvmlDeviceGetHandleByUUID": "handle",
        "nvmlDeviceGetMemoryInfo": types.SimpleNamespace(used=1000),
        "nvmlDeviceGetPowerUsage": 350_000,
        "nvmlDeviceGetClockInfo": 1980,
        "nvmlDeviceGetTemperature": lambda: 40 + next(looks),
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda: 4,
    }
    for name, value in answers.items():
        setattr(module, name, call(name, value))
    return module


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = types.SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def test_a_watched_gpu_is_summed_up(monkeypatch: pytest.MonkeyPatch, fake_gpu: None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    with NvmlWatch(GPU, interval=0.001) as watch:
        while len(watch.samples) < 5:
            pass
    summary = watch.summary()
    assert summary["reason"] is None
    assert summary["samples"] >= 5
    assert summary["power_watts"] == {"min": 350.0, "median": 350.0, "max": 350.0}
    assert summary["temperature_celsius"]["min"] == 40
    assert summary["temperature_celsius"]["max"] >= 44
    assert summary["throttle_reasons"] == 4


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetPowerUsage"])
def test_no_driver_or_no_permission_is_a_reason(monkeypatch: pytest.MonkeyPatch, fake_gpu: None, call: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(**{call: RuntimeError("not here")}))
    with NvmlWatch(GPU) as watch:
        pass
    assert watch.summary() == {"samples": 0, "reason": "NVML: RuntimeError: not here", "throttle_reasons": 0}


def test_a_run_shorter_than_the_interval_is_looked_at_twice(monkeypatch: pytest.MonkeyPatch, fake_gpu: None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    with NvmlWatch(GPU, interval=1000) as watch:
        pass
    assert watch.summary()["samples"] == 2


def test_the_environment_names_versions_and_no_one() -> None:
    found = describe(Cpu())
    assert found["packages"]["torch"] == version("torch"), "which has no +cu130, as torch.__version__ may"
    assert found["cpu"]["logical_cores"] >= 1
    assert found["gpu"] is None
    assert "commit" in found["git"] or "reason" in found["git"]
    assert scrub(f"{sys.prefix} and {types.__name__}").endswith("types")


def test_a_copy_is_told_its_commit_by_whoever_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*arguments: str) -> str:
        raise FileNotFoundError

    monkeypatch.setattr("optimeter.measure.jobs.environment._git", no_git)
    assert git_state() == {"reason": "git: FileNotFoundError"}
    monkeypatch.setenv("OPTIMETER_COMMIT", "abc")
    found = {"commit": "abc", "source": "OPTIMETER_COMMIT"}
    assert git_state() == found | {"dirty": False}
    monkeypatch.setenv("OPTIMETER_DIRTY", "1")
    assert git_state() == found | {"dirty": True}


@pytest.mark.parametrize(("running", "others"), [([], 0), ([os.getpid()], 0), ([os.getpid(), 1, 2], 2)])
def test_other_processes_are_those_of_others(monkeypatch: pytest.MonkeyPatch, running: list[int], others: int) -> None:
    nvml = fake_nvml()
    nvml.nvmlSystemGetDriverVersion = lambda: "580"
    nvml.nvmlDeviceGetEnforcedPowerLimit = lambda gpu: 700_000
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda gpu: [types.SimpleNamespace(pid=pid) for pid in running]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    properties = types.SimpleNamespace(uuid="1234", name="H100", total_memory=80, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
    description = Cuda().describe()
    assert description["other_processes"] == others


def test_every_measure_on_a_gpu_is_watched(monkeypatch: pytest.MonkeyPatch, fake_gpu: None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    with Cuda().watch() as watch:
        pass
    assert watch.summary()["samples"] == 2


def test_the_cpu_knows_no_allocator_and_says_so() -> None:
    allocator = Cpu().allocator()
    assert (allocator.held(), allocator.peaks(), allocator.transient()) == (None, None, None)
    assert "CPU" in str(allocator.reason)
    assert type(device_for(torch.device("cpu"))) is Cpu


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """CUDA's counters, for the test to set."""
    now = {"current": 100, "peak": 100}

    def statistics(device: Any) -> dict[str, Any]:
        return {"allocated_bytes": {"all": {"current": 1 << 20}}, "requested_bytes": {"all": dict(now)}}

    def reset(device: Any) -> None:
        now["peak"] = now["current"]

    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", statistics)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    return now


def test_cudas_allocator_credits_each_peak_to_its_phase(now: dict[str, int]) -> None:
    allocator = CudaAllocator(GPU)
    allocator.begin()
    for phase, peak, after in (
        ("forward", 500, 400),
        ("backward", 900, 300),
        ("step", 450, 350),
        ("evaluation", 600, 350),
    ):
        now.update(peak=peak, current=after)
        allocator.phase_ends(phase)
    now.update(peak=360)
    assert allocator.peaks() == {"forward": 500, "backward": 900, "step": 450, "evaluation": 600, "overall": 900}
    assert allocator.transient() == 100, "450 at most, and 350 were there after it"
    assert allocator.held() == 350


def test_the_harness_own_scratch_is_in_no_peak(now: dict[str, int]) -> None:
    allocator = CudaAllocator(GPU)
    allocator.begin()
    with allocator.aside():
        now.update(peak=10_000, current=164)  # 64 of it stay until the step is over
    now.update(peak=264, current=164)
    allocator.phase_ends("step", scratch=64)
    assert allocator.peaks() == {"step": 200, "overall": 200}
    assert allocator.transient() == 100


def test_state_that_a_first_step_leaves_behind_is_not_transient(now: dict[str, int]) -> None:
    allocator = CudaAllocator(GPU)
    allocator.begin()
    now.update(peak=410, current=400)
    allocator.phase_ends("step")
    assert allocator.transient() == 10


class Event:
    """A CUDA event on a device that is `behind` by a number of queries."""

    behind = 0
    clock = 0.0

    def __init__(self, enable_timing: bool = False) -> None:
        self.queries = 0

    def record(self, stream: Any) -> None:
        Event.clock += 1
        self.at = Event.clock

    def query(self) -> bool:
        self.queries += 1
        return self.queries > Event.behind

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: "Event") -> float:
        return 1000 * (other.at - self.at)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))


def test_cudas_clock_reads_events_in_seconds(events: None) -> None:
    device = Cuda()
    first, second = device.stamp(), device.stamp()
    assert device.seconds(first, second) == 1.0


def test_values_come_back_in_batches_in_order_without_waiting(events: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaReadBack, "settles_at_once", staticmethod(lambda tensor: False))
    read_back = CudaReadBack(torch.device("cpu"))
    Event.behind = 3
    for index in range(READ_BACK_EVERY + 2):
        read_back.add(
            Observation(index, 0.0, False, losses=[torch.tensor(float(index))], values={"a": torch.tensor(-index)})
        )
    for _ in range(3):
        assert not list(read_back.collect()), "the copy has not passed"
    found = list(read_back.collect())
    assert [one.losses[0] for one in found] == [float(index) for index in range(READ_BACK_EVERY)]
    assert [one.values["a"] for one in found] == [-float(index) for index in range(READ_BACK_EVERY)]
    assert [one.index for one in read_back.collect(wait=True)] == [READ_BACK_EVERY, READ_BACK_EVERY + 1]


def test_a_whole_loop_takes_cudas_way(events: None, now: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Events, counters and the asynchronous read-back together, on tensors of a CPU."""
    monkeypatch.setattr(CudaReadBack, "settles_at_once", staticmethod(lambda tensor: False))
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    Event.behind = 0
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    steps = READ_BACK_EVERY + 6
    with OptimizerMonitor(model, optimizer, sample_every=2, device=Cuda(torch.device("cpu"))) as monitor:
        for step in range(1, steps + 1):
            loss = model(torch.ones(1, 4)).sum()
            loss.backward()
            now.update(peak=150)  # before the step begins: it was in the backward
            optimizer.step()
            optimizer.zero_grad()
            monitor.record(loss)
            assert len(monitor.lines) == (READ_BACK_EVERY if step >= READ_BACK_EVERY else 0)
    assert [line["step"] for line in monitor.lines] == list(range(1, steps + 1))
    summary = monitor.summary()
    assert summary["time"]["optimizer"]["n"] == steps - steps // 10
    assert summary["time"]["optimizer_host"]["n"] == steps - steps // 10
    assert summary["memory"]["allocator_state_bytes"] == 0, "plain SGD keeps nothing"
    assert summary["memory"]["peak_source"] == "allocator"
    assert summary["memory"]["peak_bytes"] == {"forward": 100, "backward": 150, "step": 80, "overall": 150}, (
        "the step less what the monitor looked at: five elements"
    )


def test_waiting_for_the_device_is_no_cost_of_the_monitor(events: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaReadBack, "settles_at_once", staticmethod(lambda tensor: False))
    monkeypatch.setattr(Event, "synchronize", lambda event: time.sleep(0.2))
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    monitor = OptimizerMonitor(model, optimizer)
    monitor.read_back = CudaReadBack(torch.device("cpu"))
    with monitor:
        loss = model(torch.ones(1, 2)).sum()
        loss.backward()
        optimizer.step()
        monitor.record(loss)
    assert monitor.read_back.waited_seconds >= 0.2
    assert monitor.settling_seconds < 0.2
    assert len(monitor.lines) == 1
