"""What a run will need, told without making it: the model's shapes and the optimizer's own code, with no data in them.

    print(plan(model, lambda params: AdamW(params, lr=1e-3)))
    36.2 MB: 9.05 parameters, 9.05 gradients, 18.1 state, 0 step; fits 8 GB

The optimizer steps fake tensors of the parameters' shapes, so any model and any optimizer can be planned, at any size,
on any machine; a model on torch's meta device takes no memory itself. The state is exact; activations depend on the
batch and are not part of a plan.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from optimeter.measure.devices import HOST
from optimeter.measure.memory.ledger import parameter_counts, tensor_bytes
from optimeter.measure.memory.prediction import predict
from optimeter.measure.methods.base import Measure, Trial
from optimeter.measure.records import schema
from optimeter.measure.records.units import BYTES
from optimeter.workloads.core.workload import Workload

GIB = 1 << 30
CARDS = (8, 10, 12, 16, 24, 32, 40, 48, 64, 80, 96, 141, 192)  # GiB on common cards
CONTEXT_BYTES = GIB // 2  # what CUDA itself takes on a card, about
ACTIVATIONS = "activations depend on the batch; they come on top of a plan"
NO_TRAINING = "measure=plan does not train"
SPARSE = "a sparse gradient has as many rows as the batch touches"


@dataclass(frozen=True)
class MemoryPlan:
    """What a model and its optimizer hold in training, in bytes; `str()` of it is one line. Activations come on top."""

    parameter_bytes: int
    buffer_bytes: int
    gradient_bytes: int | None  # None where gradients are sparse: they depend on the batch
    state_bytes: int  # what the optimizer keeps between two steps
    by_role: dict[str, int]  # of the state: "first_moment", "second_moment", …
    by_dtype: dict[str, int]  # of the state
    by_device: dict[str, int]  # of the state, by type of device
    share_8bit: float  # of the trainable elements: those whose state rests in 8 bits or fewer
    transient_bytes: int  # the most that a step of the optimizer takes beside what it leaves behind
    host_reads: int  # values that a step reads back to the host
    device: str  # whose code was stepped

    @property
    def total_bytes(self) -> int:
        """All of it at once."""
        gradients = self.gradient_bytes or 0
        return self.parameter_bytes + self.buffer_bytes + gradients + self.optimizer_bytes

    @property
    def optimizer_bytes(self) -> int:
        """The most that another optimizer can save: state, and what a step takes beside."""
        return self.state_bytes + self.transient_bytes

    def __str__(self) -> str:
        return in_words(self.block())

    def block(self) -> schema.Plan:
        """The record's block `plan`."""
        return schema.Plan(
            parameter_bytes=self.parameter_bytes,
            buffer_bytes=self.buffer_bytes,
            gradient_bytes=self.gradient_bytes,
            state_bytes=self.state_bytes,
            transient_bytes=self.transient_bytes,
            device=self.device,
            total_bytes=self.total_bytes,
            optimizer_bytes=self.optimizer_bytes,
            context_bytes=CONTEXT_BYTES,
            fits=cards(self.total_bytes),
            host_reads=self.host_reads,
        )


def plan(
    model: nn.Module,
    build: Callable[[Any], Optimizer],
    *,
    named: bool = False,
    sparse: bool = False,
    closure: bool = False,
    device: torch.device | str | None = None,
) -> MemoryPlan:
    """What `model` will hold with the optimizer that `build(parameters)` makes. No data are allocated.

    named: `build` takes (name, parameter) pairs. sparse: gradients are. closure: step() needs one. device: whose code
    is stepped, by default the parameters' own, or the CPU's for a model on the meta device. Raises ValueError for a
    model that has nothing to train, and what the optimizer's own code raises.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("plan: the model has no trainable parameter")
    if device is None:
        device = HOST if trainable[0][1].is_meta else trainable[0][1].device
    device = torch.device(device)
    build_named = build if named else lambda pairs: build([p for _, p in pairs])
    prediction = predict(build_named, trainable, sparse, closure, device)
    return MemoryPlan(
        parameter_bytes=tensor_bytes(model.parameters()),
        buffer_bytes=tensor_bytes(model.buffers()),
        gradient_bytes=None if sparse else tensor_bytes(p for _, p in trainable),
        state_bytes=prediction.ledger.state_bytes,
        by_role=prediction.ledger.by_role,
        by_dtype=prediction.ledger.by_dtype,
        by_device=prediction.ledger.by_device,
        share_8bit=prediction.ledger.share_8bit,
        transient_bytes=prediction.transient_bytes,
        host_reads=prediction.host_reads,
        device=device.type,
    )


class Plan(Measure):
    """Tell what a run would need, by shapes alone: no data, no GPU, nothing of the model's size is allocated."""

    trains = False

    def run(self, trial: Trial) -> schema.Findings:
        model, recipe = skeleton(trial.workload, trial.settings.dtype), trial.optimizer
        sparse = trial.workload.gradients == "sparse"
        planned = plan(
            model, recipe.build, named=True, sparse=sparse, closure=recipe.closure, device=trial.device.torch
        )
        parameters = parameter_counts(model)
        memory = schema.Memory.of(planned, parameters.trainable or 0)
        memory.predicted_state_bytes = planned.state_bytes
        memory.transient_bytes = planned.transient_bytes
        missing = {"quality": NO_TRAINING, "plan.activations": ACTIVATIONS}
        if sparse:
            missing["plan.gradient_bytes"] = SPARSE
        return schema.Findings(status="ok", parameters=parameters, memory=memory, plan=planned.block(), missing=missing)

    def line(self, findings: schema.Findings) -> str:
        """As in "180.9 GB: 45.2 parameters, 45.2 gradients, 90.5 state, 0.1 step; fits 192 GB"."""
        return in_words(findings.plan) if findings.plan.total_bytes is not None else ""


def skeleton(workload: Workload, dtype: torch.dtype) -> nn.Module:
    """The workload's model without data: shapes, dtypes and names alone."""
    with torch.device("meta"):
        return workload.skeleton().to(dtype=dtype)


def cards(total_bytes: int) -> dict[str, bool]:
    """Card (GiB, as text) → whether so many bytes and CUDA's own fit on it."""
    return {str(card): total_bytes + CONTEXT_BYTES <= card * GIB for card in CARDS}


def in_words(plan: schema.Plan) -> str:
    """A plan in one line: "180.9 GB: 45.2 parameters, 45.2 gradients, 90.5 state, 0.1 step; fits 192 GB"."""
    total = plan.total_bytes or 0
    unit = "GB" if total >= BYTES["GB"] else "MB"
    size = BYTES[unit]
    parts = {
        "parameters": plan.parameter_bytes,
        "gradients": plan.gradient_bytes,
        "state": plan.state_bytes,
        "step": plan.transient_bytes,
    }
    words = ", ".join(f"{part / size:.4g} {name}" for name, part in parts.items() if part is not None)
    fitting = [card for card, fits in plan.fits.items() if fits]
    room = f"fits {fitting[0]} GB" if fitting else "fits no common card"
    return f"{total / size:.4g} {unit}: {words}; {room}"
