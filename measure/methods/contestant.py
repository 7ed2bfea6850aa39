"""One optimizer on its own copy of the parameters: its steps timed block by block, and the bytes that they move."""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from optimeter.measure.devices import device_for
from optimeter.measure.memory.ledger import ledger, tensor_bytes
from optimeter.measure.memory.prediction import to_mode
from optimeter.measure.methods.gradients import Noise
from optimeter.measure.methods.settings import Build
from optimeter.measure.monitor.probe import fingerprints
from optimeter.measure.statistics import spread

WARM_UP = 3  # steps after the first: some allocate, or compile, at the second


@dataclass(frozen=True)
class Side:
    """One of the two optimizers, and what its step needs."""

    name: str
    build: Build
    closure: bool = False
    hessian: bool = False  # it has a step of another kind now and then, which is not made here
    roles: Mapping[str, str] = field(default_factory=dict)


class Contestant:
    """An optimizer on its own copy of a model's parameters, and how long its steps took."""

    def __init__(self, side: Side, model: nn.Module, gradients: Noise) -> None:
        self.side, self.gradients = side, gradients
        self.start_values = [p.detach() for p in model.parameters() if p.requires_grad]
        self.model = model = copy.deepcopy(model)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.device = device_for(self.parameters[0].device)
        self.before = fingerprints(model)
        self.optimizer = side.build(named)
        to_mode(self.optimizer, "train")
        loss = torch.ones((), device=self.device.torch)
        self.arguments: tuple[Any, ...] = (lambda: loss,) if side.closure else ()
        self.steps, self.block_steps = 0, 1
        self.first_step: float = 0.0
        self.seconds: list[float] = []  # a step, of each block
        self.host_seconds: list[float] = []

    def start(self, block_seconds: float) -> None:
        """The first step, a few more, then as many as tell how many fill a block."""
        self.gradients.write(self.parameters)
        self.first_step, _ = self.timed(1)
        self.timed(WARM_UP)
        steps = 1
        while (seconds := self.timed(steps)[0]) < block_seconds / 4:
            steps *= 2
        self.block_steps = max(1, round(block_seconds * steps / seconds))

    def timed(self, steps: int) -> tuple[float, float]:
        """Seconds that `steps` steps take, until the device has done them, and seconds that they keep the host."""
        self.device.synchronise()
        begin, called = self.device.stamp(), time.perf_counter()
        for _ in range(steps):
            self.optimizer.step(*self.arguments)
        returned, end = time.perf_counter(), self.device.stamp()
        self.device.synchronise()
        self.steps += steps
        return self.device.seconds(begin, end), returned - called

    def block(self) -> float:
        """One block with fresh gradients; returns its seconds a step.

        It starts from the first weights: thousands of steps along noise would lead Adafactor's to infinity.
        """
        self.gradients.write(self.parameters)
        for p, value in zip(self.parameters, self.start_values, strict=True):
            p.detach().copy_(value)
        self.timed(1)
        device, host = (seconds / self.block_steps for seconds in self.timed(self.block_steps))
        self.seconds.append(device)
        self.host_seconds.append(device if self.device.host_waits else host)
        return device

    def unmoved(self) -> list[str]:
        """Names of parameters that are bit for bit what they were before the first step."""
        now = fingerprints(self.model)
        trainable = {name for name, p in self.model.named_parameters() if p.requires_grad}
        return sorted(name for name in now if name in trainable and now[name] == self.before[name])

    def finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self.parameters)

    def traffic(self) -> dict[str, Any]:
        """The least bytes that a step must move (`minimum_bytes`), and what they follow from."""
        held = ledger(self.optimizer, self.model, self.side.roles).state_bytes
        elements = sum(p.numel() for p in self.parameters)
        touched, gradient_bytes = self.gradients.touched(self.parameters)
        moved = minimum_bytes(tensor_bytes(self.parameters), gradient_bytes, held, touched / elements)
        working_set = tensor_bytes(self.parameters) + tensor_bytes(p.grad for p in self.parameters) + held
        known = {"state_bytes": held, "gradient_bytes": gradient_bytes, "touched_elements": touched}
        return known | {
            "minimum_bytes": moved,
            "bytes_per_parameter": moved / touched,
            "working_set_bytes": working_set,
        }

    def block_of(self, copied: float, cache: int | None) -> dict[str, Any]:
        """What the record keeps of this side; `copied` is the copy's bytes a second."""
        found = self.traffic()
        rate = found["minimum_bytes"] / spread(self.seconds)["median"]  # type: ignore[index]
        return {
            "optimizer": self.side.name,
            "seconds": spread(self.seconds),
            "mean_seconds": sum(self.seconds) / len(self.seconds),
            "host_seconds": spread(self.host_seconds),
            "first_step": self.first_step,
            "block_steps": self.block_steps,
            **found,
            "bytes_per_second": rate,
            "copy_share": rate / copied,
            "fits_in_cache": None if cache is None else found["working_set_bytes"] <= cache,
            "raw_seconds": self.seconds,
        }


def minimum_bytes(parameters: float, gradients: float, state: float, share: float = 1.0) -> float:
    """The least bytes that one step moves to and from memory: 2 × parameters + gradients + 2 × state.

    Parameters and state are read and written once, gradients read once; where gradients are sparse, `share` of the
    elements is touched, and state is taken to lie beside them. State bytes are the ledger's. That makes 28 bytes a
    parameter for AdamW in fp32, 16.06 with 8-bit state in blocks of 256, 20 for Lion, 12 for Adafactor, as in the
    literature. It is a bound: Adafactor, CAME and whatever else needs a sum over the tensor before it can update
    must read again what does not stay in the cache; state that is only read (Prodigy's starting point) or touched now
    and then (Shampoo's roots) is counted too high.
    """
    return 2 * share * (parameters + state) + gradients
