"""Stamps in time: the host's clock on a CPU, events on the stream on CUDA, which cost no synchronisation."""

import time
from typing import Any

import torch


class HostClock:
    """Stamps are seconds; the work that they bracket has finished when they are taken."""

    def stamp(self) -> Any:
        """Now."""
        return time.perf_counter()

    def seconds(self, start: Any, end: Any) -> float:
        """Time between two stamps."""
        return end - start


class CudaClock(HostClock):
    """Stamps are events on the current stream; `seconds` may be asked only when the device has passed both."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def stamp(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3


def clock_for(device: torch.device) -> HostClock:
    """The clock that measures work on `device`."""
    return CudaClock(device) if device.type == "cuda" else HostClock()
