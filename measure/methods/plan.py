"""What a run will need, told without making it: the model's shapes and the optimizer's own code, with no data in them.

The model is built on torch's meta device and the optimizer steps fake tensors of its parameters' shapes, so any model
and any optimizer can be planned, at any size, on any machine. The state is exact; activations depend on the batch and
are not part of a plan.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from optimeter.measure.memory.ledger import parameter_counts, tensor_bytes
from optimeter.measure.memory.prediction import Prediction, predict
from optimeter.measure.methods.settings import Build, Settings

GIB = 1 << 30
CARDS = (8, 10, 12, 16, 24, 32, 40, 48, 64, 80, 96, 141, 192)  # GiB on common cards
CONTEXT_BYTES = GIB // 2  # what CUDA itself takes on a card, about
ACTIVATIONS = "activations depend on the batch; they come on top of a plan"


def plan(workload: Any, build: Build, settings: Settings) -> dict[str, Any]:
    """The record's blocks for `measure=plan`; nothing of the model's size is allocated.

    `plan` holds bytes of parameters, buffers, gradients, state and the most that a step needs beside them
    (`transient_bytes`), their sum, and for each common card (GiB) whether that sum fits.
    """
    model = skeleton(workload, settings.dtype)
    sparse = workload.gradients == "sparse"
    found = predict(build, model.named_parameters(), sparse, settings.closure, torch.device(settings.device))
    missing = {"quality": "measure=plan does not train", "plan.activations": ACTIVATIONS}
    if sparse:
        missing["plan.gradient_bytes"] = "a sparse gradient has as many rows as the batch touches"
    return {
        "status": "ok",
        "reason": None,
        "steps": 0,
        "parameters": parameter_counts(model),
        "memory": _memory(found, model),
        "plan": needs(model, found, sparse, settings.device),
        "missing": missing,
    }


def skeleton(workload: Any, dtype: torch.dtype) -> nn.Module:
    """The workload's model without data: shapes, dtypes and names alone."""
    with torch.device("meta"):
        return workload.skeleton().to(dtype=dtype)


def needs(model: nn.Module, found: Prediction, sparse: bool, device: str) -> dict[str, Any]:
    """The record's `plan` block; the transient is that of the code that runs on `device`."""
    gradients = 0 if sparse else tensor_bytes(p for p in model.parameters() if p.requires_grad)
    parts: dict[str, int] = {
        "parameter_bytes": tensor_bytes(model.parameters()),
        "buffer_bytes": tensor_bytes(model.buffers()),
        "gradient_bytes": gradients,
        "state_bytes": found.ledger.state_bytes,
        "transient_bytes": found.transient_bytes,
    }
    total = sum(parts.values())
    return {
        **parts,
        "gradient_bytes": None if sparse else gradients,
        "device": device,
        "total_bytes": total,
        "optimizer_bytes": parts["state_bytes"] + parts["transient_bytes"],  # the most that another one can save
        "context_bytes": CONTEXT_BYTES,
        "fits": fits(total),
        "host_reads": found.host_reads,
    }


def fits(total_bytes: int) -> dict[str, bool]:
    """Card (GiB, as text) → whether so many bytes and CUDA's own fit on it."""
    return {str(card): total_bytes + CONTEXT_BYTES <= card * GIB for card in CARDS}


def _memory(found: Prediction, model: nn.Module) -> Mapping[str, Any]:
    held, trainable = found.ledger, [p for p in model.parameters() if p.requires_grad]
    return {
        "state_bytes": held.state_bytes,
        "state_bytes_per_parameter": held.state_bytes / max(sum(map(Tensor.numel, trainable)), 1),
        "by_role": held.by_role,
        "by_dtype": held.by_dtype,
        "state_8bit_share": held.share_8bit,
        "predicted_state_bytes": held.state_bytes,
        "transient_bytes": found.transient_bytes,
    }
