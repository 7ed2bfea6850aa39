"""Counters of energy: NVML's on an NVIDIA GPU, RAPL's on a CPU. Each counts from when it is made."""

from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")


class NoMeter(Exception):
    """Why the energy of a device cannot be told, in one line."""


class GpuMeter:
    """All that the card has taken, as NVML counts it (Volta and later), in steps of about a tenth of a second."""

    source = "NVML"

    def __init__(self, device: torch.device) -> None:
        import pynvml

        self.nvml = pynvml
        try:
            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(device).uuid
            self.card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self.begin = self.millijoules()
        except pynvml.NVMLError as error:
            raise NoMeter(f"NVML: {error}") from error

    def millijoules(self) -> int:
        """The card's counter, since the driver was loaded."""
        return self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.card)

    def joules(self) -> float:
        """Energy since the meter was made."""
        return (self.millijoules() - self.begin) / 1e3


class CpuMeter:
    """All that the processor's packages have taken, as RAPL counts it, whatever runs on them; memory is not in it."""

    source = "RAPL"

    def __init__(self, device: torch.device) -> None:
        self.packages = sorted(POWERCAP.glob("intel-rapl:[0-9]"))  # AMD's are called so too; intel-rapl:0:0 is a part
        if not self.packages:
            raise NoMeter(f"RAPL: {POWERCAP} has no intel-rapl; it is not Linux, or a virtual machine")
        try:
            self.begin = [microjoules(package) for package in self.packages]
            self.ranges = [int((package / "max_energy_range_uj").read_text()) for package in self.packages]
        except PermissionError as error:
            raise NoMeter(f"RAPL: {error.filename} may not be read; it is root's") from error

    def joules(self) -> float:
        """Energy since the meter was made, over one wrap of a counter (about an hour) but not over two."""
        total = 0
        for package, begin, largest in zip(self.packages, self.begin, self.ranges, strict=True):
            total += since(begin, microjoules(package), largest)
        return total / 1e6


def microjoules(package: Path) -> int:
    """A package's counter."""
    return int((package / "energy_uj").read_text())


def since(begin: int, end: int, largest: int) -> int:
    """How far a counter went that starts again at 0 after `largest`."""
    return end - begin if end >= begin else end + largest + 1 - begin


METERS: dict[str, Any] = {"cpu": CpuMeter, "cuda": GpuMeter}


def meter_for(device: torch.device) -> GpuMeter | CpuMeter:
    """A running meter; raises NoMeter where there is none for the device."""
    if device.type not in METERS:
        raise NoMeter(f"no counter of energy is known for {device.type}")
    return METERS[device.type](device)
