"""What a device's memory can do: bytes a second of a large copy, the roof that a step's traffic is compared with."""

import time

import torch

from optimeter.measure.devices import Device

MOST_BYTES = 512 << 20
CACHES = 4  # times the cache that a buffer must have, where its size is known
COPIES, SECONDS = 5, 0.3  # at least so many copies, and as many as fit into this time


def copy_rates(device: Device) -> list[float]:
    """Bytes read and written a second, in each of several groups of large copies within the device's memory."""
    size = min(max(device.copy_buffer_bytes, CACHES * (device.cache_bytes() or 0)), MOST_BYTES)
    source = torch.arange(size // 4, dtype=torch.float32, device=device.torch)  # zeros may move faster
    target = torch.empty_like(source)
    rates: list[float] = []
    for _ in range(2):  # the first touches every page
        target.copy_(source)
    end = time.monotonic() + SECONDS
    while len(rates) < COPIES or time.monotonic() < end:
        device.synchronise()
        begin = device.stamp()
        for _ in range(device.copies_at_once):
            target.copy_(source)
        done = device.stamp()
        device.synchronise()
        rates.append(device.copies_at_once * 2 * size / device.seconds(begin, done))
    return rates
