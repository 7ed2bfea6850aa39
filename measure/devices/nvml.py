"""What NVIDIA's management library sees of a GPU: memory outside the allocator, power, clocks, heat, throttling."""

import os
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

from optimeter.measure.devices.base import Watch

if TYPE_CHECKING:
    import torch

INTERVAL = 1.0  # seconds; the counters change about ten times a second


def handle(device: "torch.device") -> Any:
    """NVML's handle of the GPU that torch uses: by UUID, since the two number the GPUs differently."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def describe(device: "torch.device") -> dict[str, Any]:
    """Driver, power limit and how many other processes use the GPU; or why these cannot be told."""
    try:
        import pynvml

        gpu = handle(device)
        running = {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)}
        return {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "power_limit_watts": pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3,
            "other_processes": len(running - {os.getpid()}),  # this one is there only once it has used the GPU
        }
    except Exception as error:  # whatever NVML says, the run goes on without these
        return {"driver": None, "reason": f"NVML: {type(error).__name__}: {error}"}


class NvmlWatch(Watch):
    """Samples torch's GPU from a thread while it is entered; `summary()` gives the record's `gpu` block.

    `reason` says why there is nothing to see: no NVIDIA library, no driver, no permission.
    """

    def __init__(self, device: "torch.device", interval: float = INTERVAL) -> None:
        super().__init__()
        self.device, self.interval = device, interval
        self.samples: list[dict[str, Any]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "NvmlWatch":
        try:
            import pynvml

            self.nvml, self.handle = pynvml, handle(self.device)
            self.samples.append(self._sample())
        except Exception as error:  # every NVML failure means the same here: these fields stay empty
            self.reason = f"NVML: {type(error).__name__}: {error}"
            return self
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        """A sample at each interval and, for runs that are shorter, one at the end."""
        ended = False
        while not ended:
            ended = self._stop.wait(self.interval)
            try:
                self.samples.append(self._sample())
            except self.nvml.NVMLError as error:
                self.reason = f"NVML stopped answering: {error}"
                return

    def _sample(self) -> dict[str, Any]:
        nvml, handle = self.nvml, self.handle
        return {
            "memory_bytes": nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "power_watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature_celsius": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        }

    def summary(self) -> dict[str, Any]:
        """Smallest, median and largest of each quantity; throttle reasons (a bit mask) joined over all samples."""
        names = [name for name in (self.samples[0] if self.samples else {}) if name != "throttle_reasons"]
        block: dict[str, Any] = {"samples": len(self.samples), "reason": self.reason, "throttle_reasons": 0}
        for name in names:
            values = sorted(sample[name] for sample in self.samples)
            block[name] = {"min": values[0], "median": values[len(values) // 2], "max": values[-1]}
        for sample in self.samples:
            block["throttle_reasons"] |= sample["throttle_reasons"]
        return block
