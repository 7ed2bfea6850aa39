"""A list of runs, one after the other, each in its own process: kept if finished, recorded whatever happens."""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from optimeter.measure.jobs.answers import Payload
from optimeter.measure.jobs.environment import scrub
from optimeter.measure.jobs.isolate import run_isolated
from optimeter.measure.jobs.job import Job
from optimeter.measure.jobs.progress import Progress
from optimeter.measure.records.environment import Environment
from optimeter.measure.records.fields import from_plain, is_empty
from optimeter.measure.records.naming import LOG, differences, flat
from optimeter.measure.records.read import Unreadable
from optimeter.measure.records.schema import FAILED, Result, Status
from optimeter.measure.records.write import to_yaml

if TYPE_CHECKING:
    from optimeter.measure.methods.base import News

Make: TypeAlias = Callable[[Payload, Path, Callable[["News"], None]], Result]  # what the child does


@dataclass(frozen=True)
class Ending:
    """How one run of a sweep ended; `kept` where it had been made before."""

    job: Job
    status: str
    reason: str | None
    kept: bool = False
    summary: str = ""  # what was found, in a line

    def line(self) -> str:
        """The run's line of the summary."""
        said = self.reason or self.summary
        words = f"  {said}" if said else ""
        return f"{'kept' if self.kept else self.status:<12}{self.job.label:<44} {self.job.place.folder}{words}"


def told_apart(jobs: list[Job]) -> list[Job]:
    """The same jobs; where labels are alike, what differs in their configurations stands behind the label."""
    alike: dict[str, list[int]] = defaultdict(list)
    for number, job in enumerate(jobs):
        alike[job.label].append(number)
    labelled = list(jobs)
    for label, numbers in alike.items():
        differing = differences([flat(jobs[number].known["config"]) for number in numbers])
        for number, values in zip(numbers, differing, strict=True):
            words = [f"{name.rpartition('.')[2]} {value}" for name, value in values.items()]
            labelled[number] = replace(jobs[number], label=", ".join(dict.fromkeys([label, *words])))
    return labelled


def run_jobs(jobs: list[Job], make: Make) -> list[Ending]:
    """Make or keep every run, in order; Ctrl-C leaves the rest out.

    `make(payload, folder, send)` runs in the child and returns the record's blocks. Runs that another bench.py holds
    are left until last and then waited for.
    """
    endings: dict[int, Ending] = {}
    with Progress(len(jobs)) as progress, suppress(KeyboardInterrupt):
        for wait in (False, True):
            for number, job in enumerate(jobs):
                ending = None if number in endings else _make_or_keep(job, make, wait, progress)
                if ending:
                    endings[number] = ending
                    progress.end(job.label, ending.status, ending.kept)
                    if ending.status == "interrupted":
                        raise KeyboardInterrupt
    return [endings[number] for number in sorted(endings)]


def exit_code(jobs: list[Job], endings: list[Ending]) -> int:
    """130 interrupted, 2 some run failed, 0 otherwise."""
    if len(endings) < len(jobs) or any(ending.status == "interrupted" for ending in endings):
        return 130
    return 2 if any(ending.status in FAILED for ending in endings) else 0


def _make_or_keep(job: Job, make: Make, wait: bool, progress: Progress) -> Ending | None:
    """None where another bench.py is making this run and we do not wait."""
    if kept := _kept(job):
        return kept
    with job.place.lock(wait) as mine:
        if not mine:
            return None
        if kept := _kept(job):  # made by the other one in the meantime
            return kept
        progress.begin(job.label)
        try:
            return _make(job, make, progress)
        except Unreadable as problem:  # what is in the run's place is none of ours: it is left alone
            return Ending(job, "error", str(problem))


def _kept(job: Job) -> Ending | None:
    result = None if job.rerun else job.place.finished()
    return Ending(job, result.status, result.reason, True, result.summary or "") if result else None


def _make(job: Job, make: Make, progress: Progress) -> Ending:
    started, begin = now(), time.monotonic()
    job.place.begin(to_yaml(job.known["config"]))
    result = _run(job, make, progress)
    for name, value in job.known.items():
        setattr(result, name, value)
    result.environment = from_plain(Environment, job.known["environment"])
    result.reason = scrub(result.reason) if result.reason else None
    if not is_empty(result.time):
        result.time.wall = time.monotonic() - begin
    result.started, result.finished = started, now()
    log = job.place.part / LOG
    if log.exists():  # a record may be published
        log.write_text(scrub(log.read_text(encoding="utf-8", errors="replace")), encoding="utf-8")
    job.place.commit(result)
    return Ending(job, result.status, result.reason, summary=result.summary or "")


def _run(job: Job, make: Make, progress: Progress) -> Result:
    """What the child found; or, where it came to no end of its own, how it ended."""
    folder = job.place.part
    last: list[News] = []

    def on_message(message: "News") -> None:
        last[:] = [message]
        progress.news(message)

    try:
        outcome = run_isolated(
            make, job.payload, folder, log=folder / LOG, limit_seconds=job.limit_seconds, on_message=on_message
        )
    except KeyboardInterrupt:
        return Result(status="interrupted", reason="stopped with Ctrl-C")
    if outcome.result is not None:
        return outcome.result
    after = f" after step {last[0][0]} of {last[0][1]}" if last else ""
    status: Status = "timeout" if outcome.timed_out else "crashed"
    return Result(status=status, reason=f"{outcome.describe()}{after}; see {LOG}")


def now() -> str:
    """The date and time with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
