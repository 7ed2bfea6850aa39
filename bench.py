"""Measure optimizers: compose the configuration, run it in a fresh process, keep the record.

    python bench.py optimizer=adamw workload=mlp          one run
    python bench.py -m 'optimizer=glob(*)' workload=toy   a sweep
    python bench.py experiment=tour                       a named sweep

Exit code: 0 all ok (or diverged, unsupported, kept), 2 some run failed, 130 interrupted, 1 refused.
"""

import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf import CONF, Refused
from conf.check import check
from conf.explain import explain

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from measure.sweep import Job

# What does not make another run: where it is kept, how it is guarded, what it is called.
VOLATILE = ("name", "runs_dir", "rerun", "limit_seconds", "baseline", "dry", "replay", "choices")
PARTS = ("optimizer", "workload")
SWEEP = "OPTIMETER_SWEEP"  # Hydra's own folder for a sweep: a temporary one
EXIT_CODES = "exit_codes"  # in it: what jobs came to that a launcher ran elsewhere
Config = dict[str, Any]


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
    configs = compose()
    codes = Path(os.environ[SWEEP], EXIT_CODES)
    elsewhere = [int(code) for code in codes.read_text().split()] if codes.exists() else []
    return max([run(configs) if configs else 0, *elsewhere])


def compose() -> list[Config]:
    """Let Hydra compose the jobs that the command line asks for, all of them before the first one runs.

    Under another launcher than Hydra's basic one each job runs where the launcher puts it, and the list is empty.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.plugins.sweeper import Sweeper
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from measure.isolate import warm_up

    Sweeper.validate_batch_is_legal = lambda self, batch: None  # it composes each job once more, half of the time
    configs: list[Config] = []
    refusals: list[str] = []
    typed = shlex.join(["python", "bench.py", *sys.argv[1:]])

    def job(cfg: "DictConfig") -> None:
        warm_up()  # torch is imported over there while the other jobs are composed here
        try:
            config = plan(cfg, typed)
        except Refused as refusal:
            refusals.append(str(refusal))
            return
        if config is None:
            return
        if HydraConfig.get().runtime.choices["hydra/launcher"] == "basic":
            configs.append(config)
        else:
            code = run([config])
            with open(Path(os.environ[SWEEP], EXIT_CODES), "a") as file:
                file.write(f"{code}\n")

    try:
        hydra.main(config_path=str(CONF), config_name="bench", version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise Refused(explain(error)) from error
    if refusals:
        more = len(set(refusals)) - 1
        raise Refused(refusals[0] + (f" (and {more} more like this)" if more else ""))
    return configs


def plan(cfg: "DictConfig", typed: str) -> Config | None:
    """A job's configuration as plain, complete, checked data; None for a swept `any` that names no class."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    config: Config = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    chosen = HydraConfig.get().runtime.choices
    if config["replay"]:
        config = recorded(Path(config["replay"])) | {name: config[name] for name in VOLATILE if name != "choices"}
    else:
        config["choices"] = {"optimizer": chosen["optimizer"], "workload": chosen["workload"]}
    for part in ("optimizer", "workload"):
        spec = {name: value for name, value in config[part].items() if value != "???"}
        if "_target_" not in spec and HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"bench.py: {part}=any is passed over: it names no class", file=sys.stderr)
            return None
        if config["choices"][part] == "any":
            config["choices"][part] = spec.get("_target_", "any")
        config[part] = spec
    complete(config, chosen.get("experiment"))
    check(config)
    return config | {"command": typed}


def recorded(folder: Path) -> Config:
    """The configuration in a record's folder (or the path of its config.yaml)."""
    from omegaconf import OmegaConf

    path = folder if folder.suffix == ".yaml" else folder / "config.yaml"
    if not path.exists():
        raise Refused(f"replay={folder}: there is no {path}")
    config = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(config, dict) or not {"optimizer", "workload", "choices"} <= set(config):
        raise Refused(f"replay={folder}: {path} is not the configuration of a run")
    return {name: value for name, value in config.items() if name != "hydra"}  # type: ignore[misc]


def complete(config: Config, experiment: str | None) -> None:
    """Put numbers where the configuration left the choice to the workload or the optimizer."""
    config["name"] = experiment or "default" if config["name"] is None else config["name"]
    workload = config["workload"]
    for name in ("steps", "eval_every"):
        if config[name] is None:
            config[name] = workload.get(name)
        workload[name] = config[name]
    if workload.get("sparse") == "auto":
        workload["sparse"] = (config["optimizer"].get("about") or {}).get("gradients") == "sparse"


def run(configs: list[Config]) -> int:
    """Look at all that the jobs name, refuse what cannot be, then make or keep each run; returns the exit code."""
    from conf.child import identify, look, make
    from measure.sweep import exit_code, run_jobs

    machine, identities = ask(identify, configs)
    jobs = list({job.place.folder: job for job in (job_of(config, machine, identities) for config in configs)}.values())
    if configs[0]["dry"]:
        return show(jobs)
    ask(look, [job.payload["config"] for job in jobs if job.rerun or not job.place.finished()])
    endings = run_jobs(jobs, make)
    for ending in endings:
        print(ending.line())
    return exit_code(jobs, endings)


def ask(question: Callable[..., None], configs: list[Config]) -> tuple[Config, dict[str, Config]]:
    """Have a child look at each optimizer and workload: (its first answer, the one about each part).

    Raises Refused for what cannot be. Where a class ends the child that looks at it, its own run will tell why, and
    another child goes on with the rest.
    """
    from measure.isolate import run_isolated

    parts = {key(part, config): (part, config[part], bool(config["replay"])) for config in configs for part in PARTS}
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


def key(part: str, config: Config) -> str:
    """A text that is the same for the same optimizer or workload."""
    return f"{part} {json.dumps(config[part], sort_keys=True)}"


def last_line(path: Path) -> str:
    """What a program said last."""
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")


def job_of(config: Config, machine: Config, known: dict[str, Config]) -> "Job":
    """The run that a configuration stands for, with its identity."""
    from measure.record import Place, run_id, slug
    from measure.sweep import Job

    if machine["device"] is None:
        raise Refused("device=cuda: torch sees no CUDA device here; use device=cpu")
    optimizer, workload = (known[key(part, config)] for part in PARTS)
    stored = {name: value for name, value in config.items() if name != "command"}
    same = {name: value for name, value in stored.items() if name not in VOLATILE}
    same["optimizer"] = {name: value for name, value in config["optimizer"].items() if name != "about"}
    identities = [answer.get("identity", answer) for answer in (optimizer, workload)]
    run = run_id([same, machine["device_name"], machine["environment"]["packages"].get("torch"), identities])
    names = config["choices"]
    place = Place(
        Path(config["runs_dir"], slug(config["name"])), f"{slug(names['optimizer'])}-{slug(names['workload'])}-{run}"
    )
    return Job(
        label=f"{names['optimizer']} on {names['workload']}, seed {config['seed']}",
        place=place,
        payload={"config": stored, "device": machine["device"], "listed_only": bool(config["replay"])},
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
            "command": config["command"],
            "config": stored,
            "data": workload.get("identity", {}).get("data", {}),
            "environment": machine["environment"],
        },
        config_yaml=yaml_of(stored),
        limit_seconds=config["limit_seconds"],
        rerun=config["rerun"],
    )


def yaml_of(config: Config) -> str:
    """The configuration as it stands in the record's folder, where `replay` finds it."""
    import yaml

    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def show(jobs: list["Job"]) -> int:
    """For `dry`: what each run would be, hold and take; nothing is run and nothing written."""
    from conf.child import estimate
    from measure.isolate import run_isolated
    from measure.record import read_records

    records = [record.result for record in read_records(Path(jobs[0].payload["config"]["runs_dir"]))]
    walls = {(r["optimizer"], r["workload"], r.get("size"), r.get("device")): r["time"]["wall"] for r in records if r.get("time")}
    total = 0.0
    for job in jobs:
        what = run_isolated(estimate, job.payload, None).result or {"unknown": "looking at it ended the process"}
        seconds = walls.get(tuple(job.known[name] for name in ("optimizer", "workload", "size", "device")))
        total += seconds or 0
        state = "kept" if job.place.finished() and not job.rerun else "unsupported" if "unsupported" in what else "would run"
        memory = what.get("unsupported") or what.get("unknown") or ""
        if "bytes" in what:
            memory = f"{what['bytes'] / 1e6:.1f} MB of parameters, gradients and state ({what['state_bytes'] / 1e6:.1f} MB)"
        print(f"{state:<12}{job.label:<44} {'time unknown' if seconds is None else f'about {seconds:.0f} s'}  {memory}")
    print(f"{len(jobs)} runs, at least {total:.0f} s by earlier records; nothing was run")
    return 0


if __name__ == "__main__":
    main()
