"""The CPU: an operation has finished when its call returns, so the host's clock is the device's."""

import re
import time
from pathlib import Path
from typing import Any

from optimeter.measure.devices.base import Allocator, Device, ReadBack, Watch, register

CACHE_FILES = Path("/sys/devices/system/cpu/cpu0/cache")
SIZE = re.compile(r"(\d+)([KMG]?)")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@register
class Cpu(Device):
    """Stamps are seconds."""

    name = "cpu"
    host_waits = True
    overhead_limit = 0.02
    copy_buffer_bytes = 64 << 20
    copies_at_once = 1

    @classmethod
    def available(cls) -> bool:
        return True

    def label(self) -> str:
        return self.name

    def stamp(self) -> Any:
        return time.perf_counter()

    def seconds(self, start: Any, end: Any) -> float:
        return end - start

    def synchronise(self) -> None:
        return None

    def sleep(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    def allocator(self) -> Allocator:
        return Allocator("torch's CPU allocator keeps no count")

    def read_back(self) -> ReadBack:
        return ReadBack()

    def cache_bytes(self) -> int | None:
        texts = [path.read_text().strip() for path in CACHE_FILES.glob("index*/size")]
        found = [size for size in map(SIZE.fullmatch, texts) if size]
        return max((int(size[1]) * UNITS[size[2]] for size in found), default=None)

    def fork_devices(self) -> list[Any]:
        return []  # fork_rng keeps the CPU's state in any case

    def watch(self) -> Watch:
        return Watch("the run was on a CPU")
