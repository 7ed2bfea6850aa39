"""One optimizer on its own copy of the parameters: its steps timed block by block, and the bytes that they move."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optimeter.measure.memory.ledger import Ledger, ledger, tensor_bytes
from optimeter.measure.memory.process import process_peak_bytes
from optimeter.measure.methods.gradients import Noise
from optimeter.measure.methods.loop import Loop
from optimeter.measure.monitor.probe import fingerprints
from optimeter.measure.records.schema import Memory, StepSide, Times
from optimeter.measure.statistics import median, spread

UNTIMED_STEPS = 3  # after the first: some allocate, or compile, at the second


class Contestant:
    """An optimizer on its own copy of a model's parameters, and how long its steps took.

    start_values: of the parameters, to which they are set back before each block.
    """

    def __init__(self, loop: Loop, gradients: Noise, start_values: Sequence[Tensor]) -> None:
        self.loop, self.gradients, self.start_values = loop, gradients, start_values
        self.recipe, self.device, self.parameters = loop.recipe, loop.device, loop.parameters
        self.before = fingerprints(loop.model)
        loss = torch.ones((), device=self.device.torch)
        self.arguments: tuple[Any, ...] = (lambda: loss,) if self.recipe.closure else ()
        self.steps, self.block_steps = 0, 1
        self.first_step: float = 0.0
        self.seconds: list[float] = []  # a step, of each block
        self.host_seconds: list[float] = []

    def start(self, block_seconds: float) -> None:
        """Make the first step and a few more, then find how many steps fill a block."""
        self.gradients.write(self.parameters)
        self.first_step, _ = self.timed(1)
        self.timed(UNTIMED_STEPS)
        steps = 1
        while (seconds := self.timed(steps)[0]) < block_seconds / 4:
            steps *= 2
        self.block_steps = max(1, round(block_seconds * steps / seconds))

    def timed(self, steps: int) -> tuple[float, float]:
        """Seconds that `steps` steps take, until the device has done them, and seconds that they keep the host."""
        self.device.synchronise()
        begin, called = self.device.stamp(), time.perf_counter()
        for _ in range(steps):
            self.loop.optimizer.step(*self.arguments)
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
        """Names of trained parameters that are bit for bit what they were before the first step."""
        trainable = {name for name, _ in self.loop.named}
        return sorted(self.loop.unmoved(self.before) & trainable)

    def ledger(self) -> Ledger:
        """What the optimizer holds now."""
        return ledger(self.loop.optimizer, self.loop.model, self.recipe.roles)

    def memory(self) -> Memory:
        """The record's `memory`, without what only an allocator or a whole step could tell."""
        return Memory.of(
            self.ledger(),
            sum(p.numel() for p in self.parameters),
            gradient_bytes=tensor_bytes(p.grad for p in self.parameters),
            process_peak_bytes=process_peak_bytes(),
        )

    def times(self) -> Times:
        """The record's `time`."""
        host = None if self.device.host_waits else spread(self.host_seconds)
        return Times(optimizer=spread(self.seconds), optimizer_host=host, first_step=self.first_step)

    def side(self, copy_rate: float, cache_bytes: int | None) -> StepSide:
        """What the record keeps of this side of a comparison; `copy_rate` is the plain copy's bytes a second."""
        state_bytes = self.ledger().state_bytes
        elements = sum(p.numel() for p in self.parameters)
        touched, gradient_bytes = self.gradients.touched(self.parameters)
        parameter_bytes = tensor_bytes(self.parameters)
        moved = minimum_bytes(parameter_bytes, gradient_bytes, state_bytes, touched / elements)
        working_set = parameter_bytes + tensor_bytes(p.grad for p in self.parameters) + state_bytes
        rate = moved / median(self.seconds)
        return StepSide(
            optimizer=self.recipe.name,
            seconds=spread(self.seconds),
            mean_seconds=sum(self.seconds) / len(self.seconds),
            host_seconds=spread(self.host_seconds),
            first_step=self.first_step,
            block_steps=self.block_steps,
            state_bytes=state_bytes,
            gradient_bytes=gradient_bytes,
            touched_elements=touched,
            minimum_bytes=moved,
            bytes_per_parameter=moved / touched,
            working_set_bytes=working_set,
            bytes_per_second=rate,
            copy_share=rate / copy_rate,
            fits_in_cache=None if cache_bytes is None else working_set <= cache_bytes,
            raw_seconds=self.seconds,
        )


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
