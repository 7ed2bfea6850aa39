"""What torch's own allocator counts: bytes held, and the peak of each phase. Only CUDA's keeps a count."""

from collections import defaultdict

import torch

PHASES = ("forward", "backward", "step", "evaluation")


class Allocator:
    """The CPU's: it knows nothing, and `reason` says so."""

    reason: str | None = "torch's CPU allocator keeps no count"

    def held(self) -> int | None:
        """Bytes that live tensors asked for, without rounding."""
        return None

    def phase_ends(self, phase: str) -> None:
        """Credit the peak since the last call to `phase`."""

    def begin(self) -> None:
        """Forget the peak so far: a phase begins here."""

    def peaks(self) -> dict[str, int] | None:
        """Highest bytes allocated, by phase and overall."""
        return None

    def transient(self) -> int | None:
        """The most that a step of the optimizer allocated beyond what was there when it began."""
        return None


class CudaAllocator(Allocator):
    """Reads CUDA's counters, which are host-side numbers: no synchronisation."""

    reason = None

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._peaks: dict[str, int] = defaultdict(int)
        self._transient, self._at_begin = 0, 0

    def _statistics(self) -> dict:
        return torch.cuda.memory_stats_as_nested_dict(self.device)

    def held(self) -> int | None:
        return self._statistics()["requested_bytes"]["all"]["current"]

    def begin(self) -> None:
        allocated = self._statistics()["allocated_bytes"]["all"]
        self._peaks["overall"] = max(self._peaks["overall"], allocated["peak"])
        self._at_begin = allocated["current"]
        torch.cuda.reset_peak_memory_stats(self.device)

    def phase_ends(self, phase: str) -> None:
        peak = self._statistics()["allocated_bytes"]["all"]["peak"]
        self._peaks[phase] = max(self._peaks[phase], peak)
        if phase == "step":
            self._transient = max(self._transient, peak - self._at_begin)
        self.begin()

    def peaks(self) -> dict[str, int] | None:
        self.begin()
        return {name: self._peaks[name] for name in (*PHASES, "overall") if name in self._peaks}

    def transient(self) -> int | None:
        return self._transient


def allocator_for(device: torch.device) -> Allocator:
    """The counters of the allocator that serves `device`."""
    return CudaAllocator(device) if device.type == "cuda" else Allocator()
