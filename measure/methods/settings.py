"""How to train, whatever is trained: the settings of a run, its schedule, and how a batch gets to the device."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Settings:
    """How to train, whatever is trained; the names are the configuration's."""

    steps: int
    seed: int = 0
    dtype: torch.dtype = torch.float32
    schedule: str = "constant"
    warmup_steps: int = 0
    clip_norm: float | None = None
    accumulate: int = 1
    eval_every: int | None = None
    record_every: int = 1


def scheduler(optimizer: Optimizer, settings: Settings) -> LambdaLR | None:
    """Linear warm-up, then constant, or linear or cosine decay to 0 at the last step; None where nothing changes."""
    warmup, rest = settings.warmup_steps, max(settings.steps - settings.warmup_steps, 1)
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda progress: 1.0,
        "linear": lambda progress: 1 - progress,
        "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    }
    shape = shapes[settings.schedule]
    if settings.schedule == "constant" and warmup == 0:
        return None
    return LambdaLR(optimizer, lambda done: (done + 1) / warmup if done < warmup else shape((done - warmup) / rest))


def to_device(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Tensors of a batch on `device`, floating ones in `dtype`; containers keep their shape."""
    if isinstance(batch, Tensor):
        return batch.to(device, dtype if batch.is_floating_point() else None, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(part, device, dtype) for key, part in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(part, device, dtype) for part in batch)
    return batch
