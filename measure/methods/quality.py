"""What a run reached: the record's block `quality`."""

import math
from collections.abc import Collection, Sequence
from typing import Any


def quality(
    workload: Any, evaluations: Sequence[dict[str, Any]], last_losses: Collection[float], diverged: bool
) -> dict[str, Any]:
    """Held-out loss and score at the first and the last of the `evaluations`, and when the target was first reached.

    last_losses: of the last tenth of the training steps.
    """
    losses = [one["loss"] for one in evaluations if math.isfinite(one["loss"])]
    target, sign = workload.target, 1 if workload.higher_is_better else -1
    reached = [
        one
        for one in evaluations
        if target is not None and one["score"] is not None and sign * (one["score"] - target) >= 0
    ]
    last = {"loss": None, "score": None} if diverged else evaluations[-1]
    return {
        "first_loss": evaluations[0]["loss"],
        "final_loss": last["loss"],
        "best_loss": min(losses, default=None),
        "train_loss": sum(last_losses) / len(last_losses) if last_losses else None,
        "score": last["score"],
        "score_name": workload.score_name,
        "higher_is_better": workload.higher_is_better,
        "target": target,
        "steps_to_target": reached[0]["step"] if reached else None,
        "seconds_to_target": reached[0]["seconds"] if reached else None,
        "evaluations": evaluations,
    }
