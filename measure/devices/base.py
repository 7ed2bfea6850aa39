"""What a device must tell, and the list of those that there are.

A new device is one file in this folder, with a class under `@register`; `cpu.py` is the shortest example.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HOST = "cpu"  # where values can be read without waiting, and what `auto` falls back on
PHASES = ("forward", "backward", "step", "estimator", "evaluation")
SETTLE_EVERY = 32  # steps that a CPU turns into lines at once: one at a time, in cold caches, costs three times as much


class UnknownDevice(ValueError):
    """No class here measures this device: it is refused, never timed as if it were another."""


class UnavailableDevice(ValueError):
    """A known device that torch does not find on this machine."""


class Allocator:
    """Bytes that torch's allocator counts on a device. This one counts nothing, and `reason` says why.

    reason: None where the allocator keeps a count.
    """

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason

    def held(self, settled: bool = False) -> int | None:
        """Bytes that live tensors asked for, without rounding.

        settled: with what libraries keep for later in a known state, so that two such readings can be subtracted.
        """
        return None

    def begin(self) -> None:
        """A phase begins here; the peak so far counts for no phase, but for the whole."""

    def phase_ends(self, phase: str, scratch: int = 0) -> None:
        """Credit the peak since the last call to `phase`, less `scratch` bytes that the monitor itself held."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is allocated inside is the harness's own and counts for nothing."""
        yield

    def peaks(self) -> dict[str, int] | None:
        """Highest bytes that live tensors and libraries' workspaces asked for, by phase and overall."""
        return None

    def transient(self) -> int | None:
        """The most that a step of the optimizer allocated beyond what was there when it began."""
        return None


def on_host(tensor: "Tensor") -> bool:
    """Whether a tensor's values can be read without waiting for a device."""
    return tensor.device.type == HOST


class Readable(Protocol):
    """Something whose values may still lie on a device."""

    def tensors(self) -> "dict[str, Tensor]":
        """The values to be read back, by name."""

    def settle(self, numbers: dict[str, float]) -> None:
        """Take numbers in the place of the tensors of these names."""


class ReadBack:
    """Hands back what it was given, in order, once the values are on the host. Here they are there at once."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.waited_seconds = 0.0  # for the device, all in all

    @staticmethod
    def settles_at_once(tensor: "Tensor") -> bool:
        """Whether reading the value waits for no device."""
        return on_host(tensor)

    def add(self, readable: Readable) -> None:
        """Take one that is complete."""
        tensors = readable.tensors().items()
        readable.settle({name: tensor.item() for name, tensor in tensors if self.settles_at_once(tensor)})
        self.waiting.append(readable)

    def ready(self) -> bool:
        """Whether it is time to collect."""
        return len(self.waiting) >= SETTLE_EVERY

    def collect(self, wait: bool = False) -> Iterator[Any]:
        """Yield those whose values have arrived; `wait` blocks for the rest."""
        ready, self.waiting = self.waiting, []
        yield from ready


class Watch:
    """Looks at a device while it is entered. This one sees nothing, and `reason` says why."""

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def summary(self) -> dict[str, Any] | None:
        """The record's `gpu` block."""
        return None


class Device(ABC):
    """One device that torch computes on.

    name: as in `device=NAME`, torch's type of device.
    torch: what tensors are moved to.
    """

    name: ClassVar[str]
    host_waits: ClassVar[bool] = False  # an operation has finished when its call returns
    overhead_limit: ClassVar[float] = 0.01  # of the step time: what the monitor's default schedule may cost
    copy_buffer_bytes: ClassVar[int] = 256 << 20  # at least, of the buffer by which the copy rate is measured
    copies_at_once: ClassVar[int] = 10  # between two stamps: a launch takes a few percent of the time of one copy

    def __init__(self, device: "torch.device | None" = None) -> None:
        import torch

        self.torch = device or torch.device(self.name)

    @classmethod
    @abstractmethod
    def available(cls) -> bool:
        """Whether torch finds this device here."""

    @abstractmethod
    def label(self) -> str:
        """The model's name, as "NVIDIA H100": part of a run's id."""

    def describe(self) -> dict[str, Any] | None:
        """The environment's `gpu` block: name, memory, versions. None where the host itself does the work."""
        return None if self.host_waits else {"name": self.label()}

    @abstractmethod
    def stamp(self) -> Any:
        """A point in time, in the order of the device's own work."""

    @abstractmethod
    def seconds(self, start: Any, end: Any) -> float:
        """Time between two stamps; to be asked only when the device has passed both."""

    @abstractmethod
    def synchronise(self) -> None:
        """Wait until the device has done all that it was given."""

    @abstractmethod
    def sleep(self, seconds: float) -> None:
        """Keep the device and the host busy for this long."""

    @abstractmethod
    def allocator(self) -> Allocator:
        """A new count of the device's memory."""

    @abstractmethod
    def read_back(self) -> ReadBack:
        """A new queue of values on their way to the host."""

    def cache_bytes(self) -> int | None:
        """The last cache before memory; None where the machine does not tell."""
        return None

    def fork_devices(self) -> "list[torch.device]":
        """What torch.random.fork_rng must be told so that this device's draws can be taken back."""
        return [self.torch]

    def watch(self) -> Watch:
        """What looks at the device while a measure runs."""
        return Watch(f"nothing here watches {self.name}")


DEVICES: dict[str, type[Device]] = {}
Registered = TypeVar("Registered", bound=type[Device])


def register(cls: Registered) -> Registered:
    """Make a class known by its `name`; to be used as a decorator."""
    DEVICES[cls.name] = cls
    return cls


@cache
def _import_all() -> None:
    """Import each file of this folder, so that its device registers itself."""
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def names() -> list[str]:
    """The devices that can be measured, by name; whether one is here is another question."""
    _import_all()
    return sorted(DEVICES)


def device_for(device: "str | torch.device | Device") -> Device:
    """The device of this name, or the one that tensors on a torch.device lie on. Raises UnknownDevice."""
    if isinstance(device, Device):
        return device
    name = getattr(device, "type", device)
    if name not in names():
        raise UnknownDevice(f"unknown device {name!r}; there are {', '.join(names())}")
    return DEVICES[name]() if isinstance(device, str) else DEVICES[name](device)


def resolve(name: str) -> Device:
    """The device to run on. "auto": the first available one that is not the CPU, else the CPU.

    Raises UnknownDevice, and UnavailableDevice for one that is not here: it is refused, never replaced.
    """
    if name == "auto":
        accelerators = [other for other in names() if other != HOST and DEVICES[other].available()]
        return device_for(next(iter(accelerators), HOST))
    device = device_for(name)
    if not device.available():
        raise UnavailableDevice(f"torch sees no {name.upper()} device here; use device={HOST}")
    return device
