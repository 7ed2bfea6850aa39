"""What a measure tells while it runs: checked here, in its own process, since it may be anybody's."""

from numbers import Real
from operator import index
from typing import TYPE_CHECKING

from optimeter.measure.records.fields import JSON

if TYPE_CHECKING:
    from optimeter.measure.methods.base import News


def checked_progress(news: object) -> "News":
    """(steps done, steps in all, the last loss or None) as plain numbers; raises TypeError for anything else."""
    if not isinstance(news, (tuple, list)) or len(news) != 3:
        raise TypeError(f"progress takes (steps done, steps in all, the last loss or None), not {news!r:.80}")
    step, steps, loss = news
    if loss is not None and not isinstance(loss, Real):
        raise TypeError(f"a loss in progress is a number or None, not {loss!r:.80}")
    return index(step), index(steps), None if loss is None else float(loss)


def checked_line(line: object) -> dict[str, JSON]:
    """A line of steps.jsonl; raises TypeError where it is no dict, or its `step` is no whole number."""
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        raise TypeError(f"write takes a dict with a whole number as its `step`, not {line!r:.80}")
    return line
