"""How reports look into records: numbers that may be missing, the configuration, which is a mapping, and checks."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from optimeter.measure.records.fields import is_empty
from optimeter.measure.records.read import Record
from optimeter.measure.records.schema import Result, Spread
from optimeter.measure.records.units import BYTES

MB, GB = BYTES["MB"], BYTES["GB"]
MS = 1e3  # milliseconds in a second

# Check of a record → what it means where it did not come out.
CHECKS = {
    "parameters_moved": "a parameter that should train never moved",
    "frozen_unchanged": "a frozen parameter moved",
    "finite": "a parameter is not finite",
    "baseline_sound": "the baseline's parameters did not move, or are not finite",
}


def configured(run: Result, *path: str) -> Any:
    """What the configuration has at a path of keys, or None."""
    value: Any = run.config
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def middle(spread: Spread | None) -> float | None:
    """The median of a quantity, or None where it was not measured."""
    return spread.median if spread else None


def peak(run: Result, phase: str = "overall") -> int | None:
    """Bytes at the peak of a phase, or None where nobody counted them."""
    return (run.memory.peak_bytes or {}).get(phase)


def machine_of(run: Result) -> str | None:
    """The GPU that a run used, or the processor."""
    return run.environment.gpu.name or run.environment.cpu.model


def on_cpu(run: Result) -> bool:
    """Whether the host did the work, since no other device is described.

    Then there is no queue of a device to wait for, and no allocator that counts.
    """
    return is_empty(run.environment.gpu)


def followers(records: Iterable[Record]) -> dict[Any, set[str]]:
    """Class of a workload → its arguments that follow the optimizer; a run that failed early does not say it itself."""
    names: dict[Any, set[str]] = defaultdict(set)
    for record in records:
        names[configured(record.result, "workload", "_target_")].update(record.result.follows)
    return names


def class_of(record: Record) -> str:
    """The optimizer's class, without its module."""
    return str(record.result.optimizer_target).rpartition(".")[2]


def doubts(record: Record) -> list[str]:
    """Why the figures of a run that came to its end are not to be believed; empty for an honest one."""
    checks = record.result.checks
    reasons = [reason for check, reason in CHECKS.items() if getattr(checks, check) is False]
    if checks.state_grew:
        reasons.append("its state kept growing")
    return reasons


def status_of(record: Record) -> str:
    """How a run ended, and what is doubtful about it."""
    return record.result.status + "".join(f"; INVALID: {doubt}" for doubt in doubts(record))
