"""Measure optimizers: compose the configuration, run it in a fresh process, keep the record.

    python bench.py optimizer=adamw workload=mlp          one run
    python bench.py -m 'optimizer=glob(*)' workload=toy   a sweep
    python bench.py experiment=tour                       a named sweep

Exit code: 0 all ok (or diverged, unsupported, kept), 2 some run failed, 130 interrupted, 1 refused.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from optimeter.conf import Refused
from optimeter.conf.check import parts_of
from optimeter.conf.compose import Config, compose
from optimeter.measure.jobs.child import estimate, identify, look, make
from optimeter.measure.jobs.environment import scrub
from optimeter.measure.jobs.isolate import run_isolated
from optimeter.measure.jobs.sweep import Job, exit_code, run_jobs, told_apart
from optimeter.measure.records.record import VOLATILE, Place, read_records, run_id, slug

SWEEP = "OPTIMETER_SWEEP"  # Hydra's own folder for a sweep: a temporary one
MECHANICS = ("command", "runs_dir", "rerun", "dry", "replay")  # of a configuration: not worth keeping
# What is said about an optimizer that decides how it is run, or whether it can be.
TREATMENT = ("parameters", "closure", "train_mode", "gradients", "hessian_every")
EXIT_CODES = "exit_codes"  # in it: what jobs came to that a launcher ran elsewhere


def main() -> None:
    """The command, from `sys.argv` to the exit code."""
    sys.path += user_folders(sys.argv[1:])
    os.environ |= {"HYDRA_FULL_ERROR": "1", SWEEP: tempfile.mkdtemp(prefix="optimeter-")}
    try:
        sys.exit(command())
    except Refused as refusal:
        sys.exit(f"bench.py: {refusal}")
    except OSError as error:
        sys.exit(f"bench.py: {error.filename or 'writing the record'}: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        shutil.rmtree(os.environ[SWEEP], ignore_errors=True)


def user_folders(arguments: list[str]) -> list[str]:
    """Where a user's modules may be, behind all that is installed: the working folder, --config-dir and its parent."""
    folders = [Path.cwd()]
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
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

    configs = compose(run_elsewhere)
    elsewhere = [int(code) for code in codes.read_text().split()] if codes.exists() else []
    return max([run(configs) if configs else 0, *elsewhere])


def run(configs: list[Config]) -> int:
    """Look at all that the jobs name, refuse what cannot be, then make or keep each run; returns the exit code."""
    facts = ask_by_device(identify, configs)
    every = [job_of(config, *facts[config["device"]]) for config in configs]
    jobs = told_apart(list({job.place.folder: job for job in every}.values()))
    if configs[0]["dry"]:
        return show(jobs)
    ask_by_device(look, [job.payload["config"] for job in jobs if job.rerun or not job.place.finished()])
    endings = run_jobs(jobs, make)
    for ending in endings:
        print(ending.line())
    return exit_code(jobs, endings)


def ask_by_device(question: Callable[..., None], configs: list[Config]) -> dict[str, tuple[Config, dict[str, Config]]]:
    """What `ask` finds out, for each device that the configurations name."""
    devices = dict.fromkeys(config["device"] for config in configs)
    return {device: ask(question, [one for one in configs if one["device"] == device]) for device in devices}


def ask(question: Callable[..., None], configs: list[Config]) -> tuple[Config, dict[str, Config]]:
    """Have a child look at each optimizer and workload: (its first answer, the one about each part).

    Raises Refused for what cannot be. Where a class ends the child that looks at it, its own run will tell why, and
    another child goes on with the rest.
    """
    named = [(part, spec, bool(config["replay"])) for config in configs for part, spec in parts_of(config)]
    parts = {key(part, spec): (part, spec, replayed) for part, spec, replayed in named}
    limits = [config["limit_seconds"] for config in configs]
    limit = None if None in limits or not limits else max(limits)
    first: Config = {}
    known: dict[str, Config] = {}
    log = Path(os.environ[SWEEP], "questions.log")
    while len(known) < len(parts):
        waiting = [one for one in parts if one not in known]
        answers: list[Config] = []
        arguments = ([parts[one] for one in waiting], configs[0]["device"])
        outcome = run_isolated(question, *arguments, log=log, limit_seconds=limit, on_message=answers.append)
        if not answers:
            raise Refused(f"a child process cannot start: {outcome.describe()}: {last_line(log)}")
        first = answers[0]
        known |= zip(waiting, answers[1:], strict=False)
        if len(answers) <= len(waiting):
            known[waiting[len(answers) - 1]] = {"crashed": outcome.describe()}
    refusals = [answer["refused"] for answer in known.values() if "refused" in answer]
    if refusals:
        raise Refused(refusals[0] + (f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""))
    return first, known


def key(part: str, spec: Config) -> str:
    """A text that is the same for the same optimizer, workload or baseline."""
    return f"{part} {json.dumps(spec, sort_keys=True)}"


def last_line(path: Path) -> str:
    """What a program said last."""
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")


def job_of(config: Config, machine: Config, known: dict[str, Config]) -> Job:
    """The run that a configuration stands for, with its identity."""
    if machine["device"] is None:
        raise Refused(f"device={config['device']}: {machine['reason']}")
    answers = {part: known[key(part, spec)] for part, spec in parts_of(config)}
    stored = {name: value for name, value in config.items() if name not in MECHANICS}
    same = {name: value for name, value in stored.items() if name not in VOLATILE}
    same["optimizer"], same["about"] = essence(config["optimizer"])
    if "baseline" in answers:  # where it is measured it makes another run, as it does not where reports look it up
        same["measure"] = same["measure"] | {"baseline": essence(same["measure"]["baseline"])}
    identities = [answer.get("identity", answer) for answer in answers.values()]
    run = run_id([same, machine["device_name"], machine["environment"]["packages"].get("torch"), identities])
    names = config["choices"]
    place = Place(
        Path(config["runs_dir"], slug(config["name"])), f"{slug(names['optimizer'])}-{slug(names['workload'])}-{run}"
    )
    return Job(
        label=f"{names['optimizer']} on {names['workload']}, seed {config['seed']}",
        place=place,
        payload={"config": config, "device": machine["device"], "listed_only": bool(config["replay"])},
        known={
            "run": run,
            "name": config["name"],
            "measure": config["measure"]["kind"],
            "optimizer": names["optimizer"],
            "optimizer_target": config["optimizer"]["_target_"],
            "workload": names["workload"],
            "size": config["workload"].get("size"),
            "seed": config["seed"],
            "device": machine["device"],
            "dtype": config["dtype"],
            "command": scrub(config["command"]),
            "config": stored,
            "data": answers["workload"].get("identity", {}).get("data", {}),
            "environment": machine["environment"],
        },
        config_yaml=yaml_of(stored),
        limit_seconds=config["limit_seconds"],
        rerun=config["rerun"],
    )


def essence(spec: Config) -> tuple[Config, Config]:
    """An optimizer's arguments, and of what is said about it that which decides how it is run."""
    said = spec.get("about") or {}
    arguments = {name: value for name, value in spec.items() if name != "about"}
    return arguments, {name: said[name] for name in TREATMENT if name in said}


def yaml_of(config: Config) -> str:
    """The configuration as it stands in the record's folder, where `replay` finds it."""
    import yaml

    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def show(jobs: list[Job]) -> int:
    """For `dry`: what each run would be, hold and take; nothing is run and nothing written."""
    earlier = [record.result for record in read_records(jobs[0].place.sweep.parent)]
    seconds = {like(result): result["time"]["wall"] for result in earlier if result.get("time")}
    estimates: dict[str, Config] = {}  # seeds share theirs
    for job in jobs:
        same = " ".join(key(part, spec) for part, spec in parts_of(job.payload["config"])) + job.known["dtype"]
        if same not in estimates:
            answer = run_isolated(estimate, job.payload, None).result
            estimates[same] = answer or {"unknown": "looking at it ends the process"}
        found = estimates[same]
        kept = not job.rerun and job.place.finished()
        state = "unsupported" if "unsupported" in found else "kept" if kept else "would run"
        time = f"about {seconds[like(job.known)]:.0f} s" if like(job.known) in seconds else "time unknown"
        print(f"{state:<12}{job.label:<44} {time:<13} {in_words(found)}")
    total = sum(seconds.get(like(job.known), 0) for job in jobs)
    print(f"{len(jobs)} runs, {total:.0f} s for those with an earlier record; nothing was run")
    return 0


def like(known: Config) -> tuple:
    """What two runs share that should take about as long."""
    return tuple(known.get(name) for name in ("optimizer", "workload", "size", "device", "measure"))


def in_words(found: Config) -> str:
    """The estimate of one run's memory, or why there is none."""
    return found.get("unsupported") or found.get("unknown") or found["planned"]


if __name__ == "__main__":
    main()
