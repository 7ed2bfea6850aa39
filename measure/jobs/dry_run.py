"""`dry=true`: what each run would be, hold and take; nothing is run and nothing written."""

import json
from collections.abc import Mapping
from pathlib import Path

from optimeter.measure.jobs.answers import Estimate
from optimeter.measure.jobs.child import estimate
from optimeter.measure.jobs.isolate import run_isolated
from optimeter.measure.jobs.job import Job
from optimeter.measure.records.naming import VOLATILE
from optimeter.measure.records.read import read_records

ALIKE = ("optimizer", "workload", "size", "device", "measure")  # runs that should take about as long


def show(jobs: list[Job]) -> int:
    """Print a line for each run; returns the exit code."""
    seconds = earlier(jobs[0].place.sweep.parent)
    estimates: dict[str, Estimate] = {}
    for job in jobs:
        alike = same(job)
        if alike not in estimates:
            estimates[alike] = run_isolated(estimate, job.payload).result or {
                "unknown": "looking at it ends the process"
            }
        known = like(job.known)
        time = f"about {seconds[known]:.0f} s" if known in seconds else "time unknown"
        print(f"{state(job, estimates[alike]):<12}{job.label:<44} {time:<13} {in_words(estimates[alike])}")
    total = sum(seconds.get(like(job.known), 0) for job in jobs)
    print(f"{len(jobs)} runs, {total:.0f} s for those with an earlier record; nothing was run")
    return 0


def same(job: Job) -> str:
    """A text that is the same for runs of the same estimate: whether a run fits hangs on any setting but the seed."""
    config = job.known["config"]
    return json.dumps({name: config[name] for name in config if name not in (*VOLATILE, "seed")}, sort_keys=True)


def state(job: Job, found: Estimate) -> str:
    """What would become of a run."""
    if "unsupported" in found:
        return "unsupported"
    return "kept" if not job.rerun and job.place.finished() else "would run"


def earlier(runs: Path) -> dict[tuple, float]:
    """Seconds that runs took which are recorded there, by what they have in common with others."""
    results = [record.result for record in read_records(runs)]
    walls = [(result, result.time.wall) for result in results]
    return {like({name: getattr(result, name) for name in ALIKE}): wall for result, wall in walls if wall is not None}


def like(known: Mapping[str, object]) -> tuple:
    """What two runs share that should take about as long."""
    return tuple(known[name] for name in ALIKE)


def in_words(found: Estimate) -> str:
    """The estimate of one run's memory, or why there is none."""
    return found.get("unsupported") or found.get("unknown") or found["planned"]
