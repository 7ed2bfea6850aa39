"""Devices: which there are, one that a single file adds, and those that are refused by name."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from optimeter import OptimizerMonitor
from optimeter.measure import devices
from optimeter.measure.devices import UnavailableDevice, UnknownDevice, base, device_for, names, resolve
from optimeter.measure.devices.cuda import Cuda, CudaAllocator
from optimeter.workloads import Toy
from tests.trials import train

FAKE = '''"""A device whose tensors lie on the CPU, and whose seconds are those of a clock of its own."""

import torch

from optimeter.measure.devices import Allocator, register
from optimeter.measure.devices.cpu import Cpu


@register
class Fake(Cpu):
    name = "fake"
    host_waits = False
    ticks = 0

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__(torch.device("cpu"))

    def label(self) -> str:
        return "Fake 1000"

    def stamp(self) -> int:
        Fake.ticks += 1
        return Fake.ticks

    def allocator(self) -> Allocator:
        return Counter()


class Counter(Allocator):
    def held(self, settled: bool = False) -> int:
        return 4096

    def peaks(self) -> dict[str, int]:
        return {"overall": 8192}

    def transient(self) -> int:
        return 512
'''


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One file more in the folder of devices, and nothing else."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(devices, "__path__", [*devices.__path__, str(tmp_path)])
    monkeypatch.setattr(base, "DEVICES", dict(base.DEVICES))
    base._import_all.cache_clear()
    yield
    base._import_all.cache_clear()
    sys.modules.pop(f"{devices.__name__}.fake", None)


def test_the_devices_that_there_are() -> None:
    assert {"cpu", "cuda"} <= set(names())
    assert device_for("cpu").torch == torch.device("cpu")
    assert device_for(torch.device("cuda:3")).torch == torch.device("cuda:3")
    assert device_for(device_for("cpu")).name == "cpu"


def test_auto_is_the_first_available_device_that_is_not_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "DEVICES", {name: base.DEVICES[name] for name in ("cpu", "cuda")})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve("auto").name == resolve("cuda").name == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve("auto").name == resolve("cpu").name == "cpu"
    with pytest.raises(UnavailableDevice, match=r"^torch sees no CUDA device here; use device=cpu$"):
        resolve("cuda")


def known() -> str:
    """How a refusal ends: the devices that there are, for a regular expression."""
    return f"; there are {', '.join(names())}"


@pytest.mark.parametrize("device", ["tpu", "gpu", "cuda:1", None, torch.device("meta")], ids=str)
def test_an_unknown_device_is_refused_by_name(device: Any) -> None:
    name = getattr(device, "type", device)
    for ask in (device_for, resolve):
        with pytest.raises(UnknownDevice, match=f"^unknown device {name!r}{known()}$"):
            ask(device)


@pytest.mark.parametrize("device", ["gpu", torch.device("meta"), torch.device("vulkan")], ids=str)
def test_the_monitor_refuses_a_device_that_it_has_no_clock_for(device: Any) -> None:
    model = nn.Linear(2, 2)
    name = getattr(device, "type", device)
    with pytest.raises(ValueError, match=f"^OptimizerMonitor: unknown device '{name}'{known()}$"):
        OptimizerMonitor(model, torch.optim.SGD(model.parameters()), device=device)


@pytest.mark.parametrize("part", ["0.weight", "1.weight", "2.running_mean"])
def test_each_tensor_of_a_watched_model_lies_on_a_known_device(part: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False).requires_grad_(False))
    model.append(nn.BatchNorm1d(2, affine=False))
    model[int(part[0])].to("meta")
    with pytest.raises(ValueError, match=f"^OptimizerMonitor: {part}: unknown device 'meta'{known()}$"):
        OptimizerMonitor(model, torch.optim.SGD(model.parameters()))


def test_a_model_on_two_known_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.DEVICES, "meta", base.DEVICES["cpu"])
    model = nn.Sequential(nn.Embedding(8, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(
        ValueError, match=r"^OptimizerMonitor: .* \(0\.weight on cpu, 1\.weight on meta\); move it to one$"
    ):
        OptimizerMonitor(model, torch.optim.SGD(model.parameters()))


@pytest.mark.parametrize(
    "device", ["cpu", torch.device("cpu"), None, device_for("cpu")], ids=["name", "torch", "none", "own"]
)
def test_the_monitor_takes_a_device_by_name(device: Any) -> None:
    model = nn.Linear(2, 2)
    assert OptimizerMonitor(model, torch.optim.SGD(model.parameters()), device=device).device.name == "cpu"


def test_the_monitor_times_no_model_by_another_devices_clock() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^OptimizerMonitor: the model lies on cpu, not on cuda; leave `device` out"):
        OptimizerMonitor(model, torch.optim.SGD(model.parameters()), device="cuda")


def test_one_file_more_is_one_device_more(fake: None) -> None:
    assert {"cpu", "cuda", "fake"} <= set(names())
    assert device_for("fake").label() == "Fake 1000"
    with pytest.raises(UnknownDevice, match=f"{known()}$"):
        device_for("tpu")


def test_a_strangers_loop_is_watched_on_the_new_device(fake: None) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with OptimizerMonitor(model, optimizer, device="fake") as monitor:
        for _ in range(4):
            loss = model(torch.ones(1, 4)).sum()
            loss.backward()
            optimizer.step()
            monitor.record(loss)
    summary = monitor.summary()
    assert summary["time"]["optimizer"] == {"median": 1.0, "p10": 1.0, "p90": 1.0, "n": 3}, "ticks of its own clock"
    assert summary["time"]["optimizer_host"]["median"] > 0, "another time, where the host does not wait"
    memory = summary["memory"]
    assert (memory["peak_bytes"], memory["peak_source"]) == ({"overall": 8192}, "allocator")
    assert memory["transient_bytes"] == 512


def test_a_run_trains_on_the_new_device(fake: None) -> None:
    found = train(Toy(steps=12), lambda named: torch.optim.SGD([p for _, p in named], lr=0.01), device="fake")
    assert found.status == "ok"
    assert found.checks.parameters_moved
    assert found.time.optimizer is not None
    assert found.time.optimizer.median == 1.0, "ticks of its own clock"
    assert found.time.optimizer_host is not None
    assert (found.memory.peak_source, found.memory.peak_bytes) == ("allocator", {"overall": 8192})
    assert found.memory.allocator_state_bytes == 0


@pytest.mark.parametrize("name", names())
def test_every_device_keeps_the_contract(name: str) -> None:
    cls = base.DEVICES[name]
    assert cls.name == name
    assert 0 < cls.overhead_limit < 0.1
    assert cls.copies_at_once >= 1
    assert device_for("cpu").host_waits


def test_a_delay_on_cuda_keeps_device_and_host_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[int] = []
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)
    device = Cuda()
    device.__dict__["cycles_per_second"] = 1e9
    begin = device_for("cpu").stamp()
    device.sleep(0.002)
    assert slept == [2_000_000]
    assert device_for("cpu").stamp() - begin >= 0.002


class Sleeping:
    """CUDA's events on a device that sleeps a million cycles a second."""

    cycles = 0

    def __init__(self, enable_timing: bool = False) -> None:
        self.timed = enable_timing

    def record(self, stream: Any) -> None:
        self.at = Sleeping.cycles

    def elapsed_time(self, other: "Sleeping") -> float:
        return (other.at - self.at) / 1e6 * 1e3


@pytest.fixture
def sleeping(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(cycles: int) -> None:
        Sleeping.cycles += cycles

    monkeypatch.setattr(torch.cuda, "Event", Sleeping)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "_sleep", sleep)


def test_how_fast_a_gpu_counts_cycles_is_measured_once(sleeping: None) -> None:
    device = Cuda()
    assert device.cycles_per_second == pytest.approx(1e6)
    begin = Sleeping.cycles
    device.sleep(0.001)
    device.sleep(0.001)
    assert Sleeping.cycles - begin == 2000, "and no measurement among them"


def test_cuda_names_its_card(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = types.SimpleNamespace(name="H100", total_memory=80, major=9, minor=0, L2_cache_size=50 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: properties.name)
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as on ROCm, and without the library
    device = Cuda(torch.device("cuda:1"))
    assert (device.label(), device.cache_bytes()) == ("H100", 50 << 20)
    assert device.fork_devices() == [torch.device("cuda:1")]
    described = device.describe()
    assert (described["name"], described["memory_bytes"], described["capability"]) == ("H100", 80, "9.0")
    assert described["driver"] is None
    assert described["reason"].startswith("NVML: ModuleNotFoundError")
    with device.watch() as watch:
        pass
    assert (watch.summary() or {})["samples"] == 0
    assert str(watch.reason).startswith("NVML: ModuleNotFoundError")


def test_a_settled_count_gives_cublas_its_workspace_first(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def statistics(device: Any) -> dict[str, Any]:
        events.append("counted")
        return {"requested_bytes": {"all": {"current": 7, "peak": 9}}}

    clear = "_cuda_clearCublasWorkspaces"
    monkeypatch.setattr(torch._C, clear, lambda: events.append("cleared"), raising=False)
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", statistics)
    allocator = CudaAllocator(torch.device("cpu"))
    assert allocator.held() == allocator.held(settled=True) == 7
    assert events == ["counted", "cleared", "counted"]


def test_the_cpu_has_nothing_to_watch_and_says_so() -> None:
    with device_for("cpu").watch() as watch:
        pass
    assert watch.summary() is None
    assert watch.reason == "the run was on a CPU"
