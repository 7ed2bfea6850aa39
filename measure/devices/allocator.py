"""What torch's own allocator counts: bytes held, and the peak of each phase. Only CUDA's keeps a count."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("forward", "backward", "step", "estimator", "evaluation")


class Allocator:
    """The CPU's: it knows nothing, and `reason` says so."""

    reason: str | None = "torch's CPU allocator keeps no count"

    def held(self, settled: bool = False) -> int | None:
        """Bytes that live tensors asked for, without rounding.

        settled: with what libraries keep for later in a known state, so that two such readings can be subtracted.
        """
        return None

    def phase_ends(self, phase: str, scratch: int = 0) -> None:
        """Credit the peak since the last call to `phase`, less `scratch` bytes that the monitor itself held."""

    def begin(self) -> None:
        """A phase begins here; the peak so far counts for no phase, but for the whole."""

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


class CudaAllocator(Allocator):
    """Reads CUDA's counters, which are host-side numbers: no synchronisation."""

    reason = None

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._peaks: dict[str, int] = defaultdict(int)
        self._transient, self._at_begin = 0, 0

    def _statistics(self) -> dict:
        return torch.cuda.memory_stats_as_nested_dict(self.device)

    def held(self, settled: bool = False) -> int | None:
        if settled:  # each thread that calls cuBLAS keeps a workspace of 32 MiB: this one, and that of the backward
            torch._C._cuda_clearCublasWorkspaces()
            one = torch.ones(1, device=self.device)
            one.dot(one)  # now this thread has its own, and a step that needs it does not seem to allocate it
            del one
        return self._statistics()["requested_bytes"]["all"]["current"]

    def begin(self) -> None:
        self._credit("overall")

    def phase_ends(self, phase: str, scratch: int = 0) -> None:
        at_begin = self._at_begin
        asked = self._credit(phase, "overall", scratch=scratch)
        if phase == "step":  # what the step leaves behind is state, not transient
            self._transient = max(self._transient, asked["peak"] - max(at_begin, asked["current"]))

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.begin()
        try:
            yield
        finally:
            self._credit()

    def _credit(self, *names: str, scratch: int = 0) -> dict[str, int]:
        """Credit the peak to `names` and begin anew: one reading of the counters, which takes tens of microseconds."""
        asked: dict[str, int] = self._statistics()["requested_bytes"]["all"]
        for name in names:
            self._peaks[name] = max(self._peaks[name], asked["peak"] - scratch)
        torch.cuda.reset_peak_memory_stats(self.device)
        self._at_begin = asked["current"]
        return asked

    def peaks(self) -> dict[str, int] | None:
        self.begin()
        return {name: self._peaks[name] for name in (*PHASES, "overall") if name in self._peaks}

    def transient(self) -> int | None:
        return self._transient


def allocator_for(device: torch.device) -> Allocator:
    """The counters of the allocator that serves `device`."""
    return CudaAllocator(device) if device.type == "cuda" else Allocator()
