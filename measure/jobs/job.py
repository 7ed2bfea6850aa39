"""What a run is: where its record goes, what its process is given, and what makes two runs the same run."""

from dataclasses import dataclass
from pathlib import Path

from optimeter.measure.jobs.answers import Answers, Payload
from optimeter.measure.jobs.environment import scrub
from optimeter.measure.jobs.outcomes import Refused
from optimeter.measure.jobs.parts import Config, key, others, parts_of
from optimeter.measure.records.fields import JSON
from optimeter.measure.records.folder import Place
from optimeter.measure.records.naming import VOLATILE, run_id, slug

MECHANICS = ("command", "runs_dir", "rerun", "dry", "replay")  # of a configuration: not worth keeping
# What is said about an optimizer that decides how it is run, whether it can be, or what is recorded of it.
TREATMENT = ("parameters", "closure", "gradients", "hessian_every", "roles")


@dataclass(frozen=True)
class Job:
    """One run: where its record goes, what the child is given, and what of the record is known before it starts."""

    label: str
    place: Place
    payload: Payload
    known: Config
    limit_seconds: float | None = None
    rerun: bool = False


def job_of(config: Config, answers: Answers) -> Job:
    """The run that a configuration stands for, with its identity; raises Refused where the device is not here."""
    machine = answers.machine
    if "refused" in machine:
        raise Refused(machine["refused"])
    stored = {name: value for name, value in config.items() if name not in MECHANICS}
    run = run_id(identity(stored, answers))
    names, size = config["choices"], config["workload"].get("size")
    workload = answers.parts[key("workload", config["workload"])].get("identity", {})
    folder = f"{slug(names['optimizer'])}-{slug(names['workload'])}-{run}"
    return Job(
        label=f"{names['optimizer']} on {names['workload']}, seed {config['seed']}",
        place=Place(Path(config["runs_dir"], slug(config["name"])), folder),
        payload={"config": config, "device": machine["device"], "listed_only": bool(config["replay"])},
        known={
            "run": run,
            "name": config["name"],
            "measure": names["measure"],
            "optimizer": names["optimizer"],
            "optimizer_target": config["optimizer"]["_target_"],
            "workload": names["workload"],
            "size": None if size is None else str(size),
            "seed": config["seed"],
            "device": machine["device"],
            "dtype": config["dtype"],
            "command": scrub(config["command"]),
            "config": stored,
            "data": workload.get("data", {}),
            "shaped_by": workload.get("shaped_by", []),
            "follows": workload.get("follows", []),
            "environment": machine["environment"],
        },
        limit_seconds=config["limit_seconds"],
        rerun=config["rerun"],
    )


def identity(stored: Config, answers: Answers) -> list[JSON]:
    """Everything that distinguishes a run from other runs, as plain data."""
    same = {name: value for name, value in stored.items() if name not in VOLATILE}
    same["optimizer"], same["about"] = essence(stored["optimizer"])
    parts = parts_of(stored)
    if roles := others(stored["measure"]):
        same["measure"] = stored["measure"] | {"optimizers": {role: essence(spec) for role, spec in roles.items()}}
    machine = answers.machine
    torch_version = machine["environment"]["packages"].get("torch")
    return [same, machine["device_name"], torch_version, [answers.identity(part, spec) for part, spec in parts]]


def essence(spec: Config) -> tuple[Config, Config]:
    """An optimizer's arguments, and the keys of its `about` that change how it is run."""
    said = spec.get("about") or {}
    arguments = {name: value for name, value in spec.items() if name != "about"}
    return arguments, {name: said[name] for name in TREATMENT if name in said}
