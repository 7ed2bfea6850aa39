"""State bytes without the state: the optimizer's own code stepped under fake tensors, which have shapes and no data.

Libraries keep what they compute once: torchao would keep a code map that fake tensors made up, and train with it from
then on. So a process that also runs the optimizer in earnest does so first.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import Optimizer
from torch.optim.optimizer import _foreach_supported_types

from optimeter.measure.memory.ledger import Ledger, ledger
from optimeter.measure.memory.live import LiveBytes

STEPS = 2  # some optimizers only look at the first gradient and allocate at the second


@dataclass(frozen=True)
class Prediction:
    """What the optimizer will hold, how often its step reads a value back to the host, and what the step needs beside.

    `transient_bytes` is the most that is allocated during a step beyond what is left after it.
    """

    ledger: Ledger
    host_reads: int
    transient_bytes: int


class FakeRun(LiveBytes):
    """Watches operations on fake tensors: what is read back to the host, and how many bytes live at once.

    A read of a fake tensor's value, where fake tensors alone would stop, is answered with 1 and counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            self.reads += 1
            return 1
        return super().__torch_dispatch__(func, types, [*map(faked, args)], kwargs)


def faked(x: Any) -> Any:
    """A real constant, such as a code map, as a fake tensor: torch caches operations on fake tensors alone."""
    mode = active_fake_mode() if type(x) is Tensor else None
    return mode.from_tensor(x) if mode else x


def predict(
    build: Callable[[Sequence[tuple[str, Tensor]]], Optimizer],
    parameters: Iterable[tuple[str, Tensor]],
    sparse: bool = False,
    closure: bool = False,
    device: torch.device | None = None,
) -> Prediction:
    """Step `build(named parameters)` on fake copies of `parameters`, on `device` where they are on none themselves.

    Raises what the optimizer's own code raises.
    """
    loss = (lambda: torch.empty(()),) if closure else ()
    shapes = [(name, p.shape, p.dtype, device or p.device) for name, p in parameters if p.requires_grad]
    with without_compiling(), foreach_of_fakes(), FakeTensorMode(allow_non_fake_inputs=True), FakeRun() as watched:
        named = [(name, nn.Parameter(torch.empty(s, dtype=dtype, device=device))) for name, s, dtype, device in shapes]
        optimizer = build(named)
        if getattr(optimizer, "is_paged", False):  # bitsandbytes: it would map real memory and fill it at address 0
            optimizer.is_paged = False  # type: ignore[attr-defined]
            optimizer.page_mng = None  # type: ignore[attr-defined] # it holds the pages of all optimizers of the process
        to_mode(optimizer, "train")
        built, transient = watched.reads, 0
        for _ in range(STEPS):
            for _, p in named:
                p.grad = no_rows(p) if sparse else torch.empty_like(p)
            watched.peak = watched.live
            if getattr(optimizer, "wants_loss", False):
                optimizer.report_loss(torch.empty(()))  # type: ignore[attr-defined]
            optimizer.step(*loss)
            transient = max(transient, watched.peak - watched.live)
        return Prediction(ledger(optimizer), (watched.reads - built) // STEPS, transient)


def no_rows(p: Tensor) -> Tensor:
    """A sparse gradient that touches nothing: fake tensors cannot follow how many rows a sparse operation keeps."""
    indices = torch.empty(1, 0, dtype=torch.long, device=p.device)
    return torch.sparse_coo_tensor(indices, p.new_empty(0, *p.shape[1:]), p.shape, check_invariants=False)


def to_mode(optimizer: Optimizer, mode: str) -> None:
    """Call the optimizer's own `train()` or `eval()` where it has one, as schedule-free methods do."""
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()


@contextmanager
def foreach_of_fakes() -> Iterator[None]:
    """Let torch's optimizers take their foreach path, with its temporaries, on fake tensors where on real ones."""
    _foreach_supported_types.append(FakeTensor)
    try:
        yield
    finally:
        _foreach_supported_types.remove(FakeTensor)


@contextmanager
def without_compiling() -> Iterator[None]:
    """Turn torch.compile off and keep fake tensors quiet: only shapes are wanted here."""
    logger = logging.getLogger("torch")
    level, disabled = logger.level, os.environ.get("TORCHDYNAMO_DISABLE")
    logger.setLevel(logging.CRITICAL)
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # read by torch.compile when it is called
    try:
        yield
    finally:
        logger.setLevel(level)
        if disabled is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = disabled
