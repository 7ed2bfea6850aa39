"""What the allocator saw an optimizer's first steps leave behind: its state, counted without looking into it."""

import gc
from collections.abc import Callable

from optimeter.measure.devices import Allocator
from optimeter.measure.memory.ledger import Ledger


class Growth:
    """Bytes that spans between `begin` and `end` allocated and left; nothing where the allocator keeps no count.

    bytes: of all spans so far; None before the first.
    walked: what the ledger found after the last step among them, by type of device.
    """

    def __init__(self, allocator: Allocator, weigh: Callable[[], Ledger]) -> None:
        self.allocator, self.weigh = allocator, weigh
        self.bytes: int | None = None
        self.walked: dict[str, int] = {}
        self._before: int | None = None

    @property
    def counting(self) -> bool:
        """Whether a span is under way."""
        return self._before is not None

    def begin(self) -> None:
        """A span begins; garbage is gone that might be freed meanwhile."""
        if self.allocator.reason is None:
            gc.collect()
            self._before = self.allocator.held(settled=True)

    def end(self, walk: bool = False) -> None:
        """The span ends, if one has begun; `walk` after a step, when the state is whole."""
        if self._before is None:
            return
        grown = (self.allocator.held(settled=True) or 0) - self._before
        self.bytes = (self.bytes or 0) + grown
        self._before = None
        if walk:
            self.walked = self.weigh().by_device
