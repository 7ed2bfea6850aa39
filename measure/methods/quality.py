"""What a run reached: the record's block `quality`."""

import math
from collections.abc import Collection, Sequence

from optimeter.measure.records.schema import Evaluation, Quality
from optimeter.workloads.core.workload import Workload


def quality(
    workload: Workload, evaluations: Sequence[Evaluation], last_losses: Collection[float], diverged: bool
) -> Quality:
    """Held-out loss and score at the first and the last of the `evaluations`, and when the target was first reached.

    last_losses: of the last tenth of the training steps.
    """
    losses = [evaluation.loss for evaluation in evaluations if evaluation.loss is not None]
    finite = [loss for loss in losses if math.isfinite(loss)]
    reached = next((evaluation for evaluation in evaluations if reaches(workload, evaluation.score)), None)
    last = None if diverged else evaluations[-1]
    return Quality(
        first_loss=evaluations[0].loss,
        final_loss=last.loss if last else None,
        best_loss=min(finite, default=None),
        train_loss=sum(last_losses) / len(last_losses) if last_losses else None,
        score=last.score if last else None,
        score_name=workload.score_name,
        higher_is_better=workload.higher_is_better,
        target=workload.target,
        steps_to_target=reached.step if reached else None,
        seconds_to_target=reached.seconds if reached else None,
        evaluations=list(evaluations),
    )


def reaches(workload: Workload, score: float | None) -> bool:
    """Whether a score is the workload's target or better."""
    if workload.target is None or score is None:
        return False
    return score >= workload.target if workload.higher_is_better else score <= workload.target
