"""CUDA, and ROCm, which torch calls by the same name: events on the stream, and an allocator that counts."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from optimeter.measure.devices import nvml
from optimeter.measure.devices.base import PHASES, Allocator, Device, Readable, ReadBack, register

CYCLES = 20_000_000  # of the sleep that tells how fast a GPU's clock is, some 10 ms
READ_BACK_EVERY = 64  # steps between two asynchronous copies


@register
class Cuda(Device):
    """Stamps are events on the current stream, which cost no synchronisation."""

    name = "cuda"

    @classmethod
    def available(cls) -> bool:
        return torch.cuda.is_available()

    def label(self) -> str:
        return torch.cuda.get_device_name(self.torch)

    def describe(self) -> dict[str, Any]:
        """Name, memory, capability, CUDA and driver of the GPU."""
        properties = torch.cuda.get_device_properties(self.torch)
        return {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        } | nvml.describe(self.torch)

    def stamp(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.torch))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3

    def synchronise(self) -> None:
        torch.cuda.synchronize(self.torch)

    def sleep(self, seconds: float) -> None:
        cycles = int(seconds * self.cycles_per_second)
        end = time.perf_counter() + seconds
        torch.cuda._sleep(cycles)
        while time.perf_counter() < end:  # either may be the one that a loop waits for
            pass

    @cached_property
    def cycles_per_second(self) -> float:
        """The clock that `torch.cuda._sleep` counts by, measured: asking for its rate takes longer than some delays."""
        begin = self.stamp()
        torch.cuda._sleep(CYCLES)
        end = self.stamp()
        self.synchronise()
        return CYCLES / self.seconds(begin, end)

    def allocator(self) -> "CudaAllocator":
        return CudaAllocator(self.torch)

    def read_back(self) -> "CudaReadBack":
        return CudaReadBack(self.torch)

    def cache_bytes(self) -> int | None:
        return getattr(torch.cuda.get_device_properties(self.torch), "L2_cache_size", None)

    def watch(self) -> nvml.NvmlWatch:
        return nvml.NvmlWatch(self.torch)


class CudaAllocator(Allocator):
    """Reads CUDA's counters, which are host-side numbers: no synchronisation."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self._peaks: dict[str, int] = defaultdict(int)
        self._transient, self._at_begin = 0, 0

    def _statistics(self) -> dict[str, Any]:
        return torch.cuda.memory_stats_as_nested_dict(self.device)

    def held(self, settled: bool = False) -> int | None:
        if settled:  # each thread that calls cuBLAS keeps a workspace of 32 MiB: this one, and that of the backward
            torch._C._cuda_clearCublasWorkspaces()
            vector = torch.ones(1, device=self.device)
            vector.dot(vector)  # now this thread has its own, and a step that needs it does not seem to allocate it
            del vector
        return self._statistics()["requested_bytes"]["all"]["current"]

    def begin(self) -> None:
        self._credit("overall")

    def phase_ends(self, phase: str, scratch: int = 0) -> None:
        at_begin = self._at_begin
        requested = self._credit(phase, "overall", scratch=scratch)
        if phase == "step":  # what the step leaves behind is state, not transient
            left = max(at_begin, requested["current"])
            self._transient = max(self._transient, requested["peak"] - left)

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.begin()
        try:
            yield
        finally:
            self._credit()

    def _credit(self, *names: str, scratch: int = 0) -> dict[str, int]:
        """Credit the peak to `names` and begin anew: one reading of the counters, which takes tens of microseconds."""
        requested: dict[str, int] = self._statistics()["requested_bytes"]["all"]
        for name in names:
            self._peaks[name] = max(self._peaks[name], requested["peak"] - scratch)
        torch.cuda.reset_peak_memory_stats(self.device)
        self._at_begin = requested["current"]
        return requested

    def peaks(self) -> dict[str, int] | None:
        self.begin()
        return {name: self._peaks[name] for name in (*PHASES, "overall") if name in self._peaks}

    def transient(self) -> int | None:
        return self._transient


class CudaReadBack(ReadBack):
    """Copies the values of 64 steps at once into pinned memory and looks at them when the copy's event has passed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.copying: list[tuple[list[Readable], Tensor, Any]] = []

    def add(self, readable: Readable) -> None:
        super().add(readable)
        if len(self.waiting) == READ_BACK_EVERY:
            self._copy()

    def ready(self) -> bool:
        return bool(self.copying)

    def _copy(self) -> None:
        batch, self.waiting = self.waiting, []
        tensors = [t.reshape(()).double() for readable in batch for t in readable.tensors().values()]
        flat = torch.stack(tensors) if tensors else torch.empty(0, dtype=torch.float64, device=self.device)
        pinned = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
        pinned.copy_(flat, non_blocking=True)
        passed = torch.cuda.Event()
        passed.record(torch.cuda.current_stream(self.device))
        self.copying.append((batch, pinned, passed))

    def collect(self, wait: bool = False) -> Iterator[Any]:
        if wait and self.waiting:
            self._copy()
        while self.copying and (wait or self.copying[0][2].query()):
            batch, pinned, passed = self.copying.pop(0)
            begin = time.perf_counter()
            passed.synchronize()
            self.waited_seconds += time.perf_counter() - begin
            numbers = iter(pinned.tolist())
            for readable in batch:
                readable.settle({name: next(numbers) for name in readable.tensors()})
                yield readable
