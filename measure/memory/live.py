"""Bytes of tensors that live at once, followed operation by operation: for fake tensors, and where no allocator counts.

What an operation allocates inside itself and frees before it returns is not seen.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optimeter.measure.memory.ledger import leaves


class LiveBytes(TorchDispatchMode):
    """While it is in force, `live` is what the followed storages hold and `peak` the most that they held at once.

    peaks: the highest peak of each `phase`, in bytes.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.peaks: dict[str, int] = {}
        self._seen: set[int] = set()
        for tensor in held:
            self.follow(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if makes_anew(func):
            for tensor in tree_leaves(made):
                if isinstance(tensor, Tensor):
                    self.follow(tensor)
        return made

    def follow(self, tensor: Tensor) -> None:
        """Count the storages behind a tensor, each once, until they are freed."""
        for leaf in leaves(tensor):
            storage = leaf.untyped_storage()
            identity, size = storage._cdata, storage.nbytes()
            if identity not in self._seen:
                self._seen.add(identity)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, identity, size)

    def _forget(self, identity: int, size: int) -> None:
        self._seen.discard(identity)
        self.live -= size

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is inside belongs to the phase of this name, which may come more than once."""
        self.peak = self.live
        yield
        self.peaks[name] = max(self.peaks.get(name, 0), self.peak)


@cache
def makes_anew(func: OpOverload) -> bool:
    """Whether an operation returns memory of its own: it is neither a view nor in place."""
    return not any(result.alias_info for result in func._schema.returns)
