"""The optimizer's step alone, against a baseline's: both in one process, block by block, in pairs of random order.

Each side has its own copy of the parameters. Before a block they are set back, every gradient is written anew, and one
step is made that does not count; a block is steps of one side, as many as fill `block_seconds`. On CUDA a block's
seconds are between events on the stream, the larger of what the host and what the device needs; the host's own time
stands beside.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optimeter.measure.devices import device_for
from optimeter.measure.memory.ledger import ledger, parameter_counts, tensor_bytes
from optimeter.measure.memory.prediction import predict
from optimeter.measure.memory.process import process_peak_bytes
from optimeter.measure.methods.bandwidth import copy_rates
from optimeter.measure.methods.contestant import Contestant, Side
from optimeter.measure.methods.gradients import Noise, TouchedRows
from optimeter.measure.methods.interleave import Comparison, interleave
from optimeter.measure.methods.settings import Settings, to_device
from optimeter.measure.statistics import spread

CANDIDATE, BASELINE = "candidate", "baseline"
ROUND, MOST = 4, 10_000  # pairs between two looks, and at all
LEAST, BELIEVED = 8, 12  # pairs, however long they take; before a narrow interval is believed
CONFIDENCE = 0.99  # at 0.9 a noisy machine would call one pair of equals in fifteen FAST or SLOW
NOT_MEASURED = "measure=step makes no training step"
ON_CPU = "On a CPU the step has ended when step() returns: host and device time are the same."
ORDINARY = "estimates curvature every some steps; these are its ordinary steps alone."
CACHED = "works on no more than the cache holds: its share of the copy can pass 1."
UNEVEN = 1.1  # mean over median of the seconds a step, from which the median does not tell the whole cost


def verdict(low: float, high: float, delta: float) -> str:
    """FAST, SLOW or SAME where the whole interval of the ratio says so, else AMBG."""
    if high < 1 - delta:
        return "FAST"
    if low > 1 + delta:
        return "SLOW"
    return "SAME" if 1 - delta <= low and high <= 1 + delta else "AMBG"


def make_pairs(
    blocks: Mapping[str, Callable[[], float]],
    seconds: float,
    precision: float,
    seed: int,
    progress: Callable[[tuple], None] = lambda news: None,
    now: Callable[[], float] = time.monotonic,
) -> Comparison:
    """Candidate against baseline, in pairs, until the interval is narrow or the time is spent.

    At least 8 pairs are made, whatever the time: of fewer, an interval of the median is too narrow.
    """
    begin = now()

    def enough(comparisons: list[Comparison]) -> bool:
        made, spent = len(comparisons[0].log_ratios), now() - begin
        progress((made, max(made, round(made * seconds / spent)) if spent > 0 else made, None))
        _, low, high = comparisons[0].interval(CONFIDENCE)
        return made >= LEAST and (spent >= seconds or (made >= BELIEVED and (high - low) / 2 <= precision))

    return interleave(blocks, [(BASELINE, CANDIDATE)], ROUND, enough, MOST, seed)[0]


def compare_steps(
    workload: Any,
    sides: Mapping[str, Side],
    settings: Settings,
    options: Mapping[str, Any],
    progress: Callable[[tuple], None] = lambda news: None,
) -> dict[str, Any]:
    """The record's blocks for `measure=step`, of `sides` CANDIDATE and BASELINE on the workload's parameters."""
    device = device_for(settings.device)
    torch.manual_seed(settings.seed)
    model = workload.model().to(device=device.torch, dtype=settings.dtype)
    gradients = gradients_for(workload, model, settings)
    rates = copy_rates(device)
    both = {}
    for name in (CANDIDATE, BASELINE):
        torch.manual_seed(settings.seed + 1)
        both[name] = Contestant(sides[name], model, gradients)
        both[name].start(options["block_seconds"])
    blocks = {name: one.block for name, one in both.items()}
    found = make_pairs(blocks, options["seconds"], options["precision"], settings.seed, progress)
    rates += copy_rates(device)  # before and after: a neighbour may have come or gone
    blocks_of_record = _blocks(both, found, rates, options, workload.gradients)
    predicted, missing = _predicted(sides[CANDIDATE], model, workload.gradients == "sparse")
    blocks_of_record["memory"]["predicted_state_bytes"] = predicted
    return blocks_of_record | {"missing": missing}


def gradients_for(workload: Any, model: nn.Module, settings: Settings) -> Noise:
    """The source of gradients of the kind that the workload's parameters receive."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if workload.gradients == "dense":
        return Noise(parameters, settings.seed)

    def placed(batch: Any) -> Any:
        return to_device(batch, parameters[0].device, settings.dtype)

    return TouchedRows(workload, model, parameters, settings.seed, placed)


def _blocks(
    both: Mapping[str, Contestant],
    comparison: Comparison,
    rates: Sequence[float],
    options: Mapping[str, Any],
    gradients: str,
) -> dict[str, Any]:
    one, base = both[CANDIDATE], both[BASELINE]
    cache, copied = one.device.cache_bytes(), spread(rates)
    middle, low, high = (1 + value for value in comparison.interval(CONFIDENCE))
    parts = {name: both[name].block_of(copied["median"], cache) for name in both}  # type: ignore[index]
    found = {"verdict": verdict(low, high, options["delta"]), "ratio": middle, "low": low, "high": high}
    found |= {"confidence": CONFIDENCE, "delta": options["delta"], "pairs": len(comparison.log_ratios)}
    found |= {
        "log_ratios": list(comparison.log_ratios),
        "shapes": in_short(one.parameters),
        "gradients": gradients,
        "copy_bytes_per_second": copied,
        "cache_bytes": cache,
        "notes": _notes(both, parts),
        **parts,
    }
    unmoved = one.unmoved()
    checks = {"parameters_moved": not unmoved, "unmoved": unmoved, "finite": one.finite()}
    checks["baseline_sound"] = base.finite() and not base.unmoved()
    return {
        "status": "ok",
        "reason": None,
        "steps": one.steps,
        "parameters": parameter_counts(one.model),
        "memory": _memory(one),
        "time": _time(one),
        "step": found,
        "checks": checks,
    }


def _memory(one: Contestant) -> dict[str, Any]:
    held = ledger(one.optimizer, one.model, one.side.roles)
    return {
        "state_bytes": held.state_bytes,
        "state_bytes_per_parameter": held.state_bytes / sum(p.numel() for p in one.parameters),
        "by_role": held.by_role,
        "by_dtype": held.by_dtype,
        "state_8bit_share": held.share_8bit,
        "gradient_bytes": tensor_bytes(p.grad for p in one.parameters),
        **dict.fromkeys(("allocator_state_bytes", "unexplained_bytes", "transient_bytes", "peak_bytes", "peak_source")),
        "process_peak_bytes": process_peak_bytes(),
    }


def _time(one: Contestant) -> dict[str, Any]:
    known = {"optimizer": spread(one.seconds), "first_step": one.first_step}
    if not one.device.host_waits:
        known["optimizer_host"] = spread(one.host_seconds)
    return dict.fromkeys(("step", "forward", "backward", "estimator", "optimizer_share")) | known


def _predicted(side: Side, model: nn.Module, sparse: bool) -> tuple[int | None, dict[str, str]]:
    """State bytes by fake tensors, if it can be told; and `missing`, with the reason for what is not there."""
    missing = dict.fromkeys(("quality", "time.step", "memory.allocator_state_bytes"), NOT_MEASURED)
    try:
        return predict(side.build, model.named_parameters(), sparse, side.closure).ledger.state_bytes, missing
    except Exception as error:
        reason = f"fake tensors: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return None, missing | {"memory.predicted_state_bytes": reason}


def _notes(both: Mapping[str, Contestant], parts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What must be said beside the figures, by topic."""
    said = {
        "clock": [ON_CPU] if both[CANDIDATE].device.host_waits else [],
        "curvature": [f"{one.side.name} {ORDINARY}" for one in both.values() if one.side.hessian],
        "cache": [f"{part['optimizer']} {CACHED}" for part in parts.values() if part["fits_in_cache"]],
        "uneven": [
            f"{part['optimizer']}: the mean step is {over:.2f} times the median one, from noise or from work that it "
            "does now and then; ratio and verdict are of the median."
            for part in parts.values()
            if (over := part["mean_seconds"] / part["seconds"]["median"]) > UNEVEN
        ],
    }
    return {topic: " ".join(dict.fromkeys(words)) for topic, words in said.items() if words}


def in_short(parameters: Sequence[Tensor]) -> str:
    """Shapes as `measure.shapes` takes them, equal ones counted together: 256*8x1024+4096."""
    counts = Counter("x".join(map(str, p.shape)) or "1" for p in parameters)
    return "+".join(f"{count}*{shape}" if count > 1 else shape for shape, count in counts.items())
