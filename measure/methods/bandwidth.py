"""What a device's memory can do: bytes a second of a large copy, the roof that a step's traffic is compared with."""

import re
import time
from pathlib import Path

import torch

from optimeter.measure.devices.clock import clock_for

LEAST_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}  # of the buffer that is copied
MOST_BYTES = 512 << 20
CACHES = 4  # times the cache that a buffer must have, where its size is known
COPIES, SECONDS = 5, 0.3  # at least so many copies, and as many as fit into this time
AT_ONCE = {"cpu": 1, "cuda": 10}  # copies between two stamps: a launch takes a few percent of the time of one
CACHE_FILES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cache_bytes(device: torch.device) -> int | None:
    """The size of the last cache before memory: L2 on CUDA, the CPU's largest; None where the machine does not tell."""
    if device.type == "cuda":
        return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", None)
    texts = (path.read_text().strip() for path in CACHE_FILES.glob("index*/size"))
    sizes = [int(found[1]) * UNITS[found[2]] for text in texts if (found := re.fullmatch(r"(\d+)([KMG]?)", text))]
    return max(sizes, default=None)


def copy_rates(device: torch.device) -> list[float]:
    """Bytes read and written a second, in each of several groups of large copies within the device's memory."""
    size = min(max(LEAST_BYTES[device.type], CACHES * (cache_bytes(device) or 0)), MOST_BYTES)
    source = torch.arange(size // 4, dtype=torch.float32, device=device)  # zeros may move faster
    target, at_once = torch.empty_like(source), AT_ONCE[device.type]
    clock = clock_for(device)
    rates: list[float] = []
    for _ in range(2):  # the first touches every page
        target.copy_(source)
    end = time.monotonic() + SECONDS
    while len(rates) < COPIES or time.monotonic() < end:
        synchronise(device)
        begin = clock.stamp()
        for _ in range(at_once):
            target.copy_(source)
        done = clock.stamp()
        synchronise(device)
        rates.append(at_once * 2 * size / clock.seconds(begin, done))
    return rates


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given; a CPU has when the call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
