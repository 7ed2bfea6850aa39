"""Measure optimizers: compose the configuration, run it in a fresh process, keep the record.

    python bench.py optimizer=adamw workload=mlp          one run
    python bench.py -m 'optimizer=glob(*)' workload=toy   a sweep
    python bench.py experiment=tour                       a named sweep

Exit code: 0 all ok (or diverged, unsupported, kept), 2 some run failed, 130 interrupted, 1 refused.
"""

import os
import shutil
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from optimeter.conf.compose import compose
from optimeter.measure.jobs.child import identify, look, make
from optimeter.measure.jobs.dry_run import show
from optimeter.measure.jobs.isolate import start_server
from optimeter.measure.jobs.job import Job, job_of
from optimeter.measure.jobs.outcomes import Refused
from optimeter.measure.jobs.parts import Config
from optimeter.measure.jobs.questions import by_device
from optimeter.measure.jobs.sweep import exit_code, run_jobs, told_apart

SWEEP = "OPTIMETER_SWEEP"  # Hydra's own folder for a sweep: a temporary one
EXIT_CODES = "exit_codes"  # in it: what jobs came to that a launcher ran elsewhere


def main() -> None:
    """The command, from `sys.argv` to the exit code."""
    sys.path[:] = search_path(sys.path, sys.argv[1:])
    os.environ |= {"HYDRA_FULL_ERROR": "1", SWEEP: tempfile.mkdtemp(prefix="optimeter-")}
    try:
        sys.exit(command())
    except Refused as refusal:
        sys.exit(f"bench.py: {refusal}")
    except OSError as error:
        place = error.filename or "writing the record"
        sys.exit(f"bench.py: {place}: {error.strerror}" if error.strerror else f"bench.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        shutil.rmtree(os.environ[SWEEP], ignore_errors=True)


def search_path(folders: list[str], arguments: list[str]) -> list[str]:
    """Where modules are looked for: what is installed, then the user's folders, then a checkout of ours.

    A user may have a package named as one of our rooms is, which a checkout in front would hide.
    """
    theirs = user_folders(arguments)
    checkouts = [folder for folder in [*folders, *theirs] if is_checkout(Path(folder))]
    return [*(folder for folder in [*folders, *theirs] if folder not in checkouts), *checkouts]


def is_checkout(folder: Path) -> bool:
    """Whether the rooms stand there side by side, as they do not in a wheel."""
    return (folder / "bench.py").exists() and (folder / "optimeter" / "bench.py").exists()


def user_folders(arguments: list[str]) -> list[str]:
    """Where a user's modules may be: the working folder, --config-dir and its parent."""
    folders = [Path.cwd()]
    for flag, value in pairwise([*arguments, ""]):
        name, _, attached = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            folder = Path(attached or value).resolve()
            folders += [folder, folder.parent]
    return [str(folder) for folder in folders]


def command() -> int:
    """Compose every job, then run them; returns the exit code."""
    codes = Path(os.environ[SWEEP], EXIT_CODES)

    def run_elsewhere(config: Config) -> None:
        with open(codes, "a") as file:
            file.write(f"{run([config])}\n")

    # torch is imported in the fork server while jobs are composed here
    configs = compose(run_elsewhere, begin=start_server)
    elsewhere = [int(code) for code in codes.read_text().split()] if codes.exists() else []
    return max([run(configs) if configs else 0, *elsewhere])


def run(configs: list[Config]) -> int:
    """Look at all that the jobs name, refuse what cannot be, then make or keep each run; returns the exit code."""
    answers = by_device(identify, configs)
    jobs = distinct([job_of(config, answers[config["device"]]) for config in configs])
    by_device(look, [job.payload["config"] for job in jobs if job.rerun or not job.place.finished()])
    if configs[0]["dry"]:
        return show(jobs)
    endings = run_jobs(jobs, make)
    for ending in endings:
        print(ending.line())
    return exit_code(jobs, endings)


def distinct(jobs: list[Job]) -> list[Job]:
    """Each run once; where labels are alike, they say what differs."""
    return told_apart(list({job.place.folder: job for job in jobs}.values()))


if __name__ == "__main__":
    main()
