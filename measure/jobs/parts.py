"""The parts that a run is built from, as its configuration names them: plain data, no class is imported here."""

import json
from typing import TypeAlias

from optimeter.measure.records.fields import JSON

Config: TypeAlias = dict[str, JSON]  # a whole configuration, or the part of it that one class is built from
PARTS = ("optimizer", "workload", "measure")
# What an optimizer's YAML says under `about`, with the defaults. It is taken off before the constructor is called.
ABOUT: Config = {
    "parameters": "plain",  # or "named": the optimizer is given (name, parameter) pairs
    "closure": False,  # step() needs a closure
    "gradients": "dense",  # or "sparse", "both"
    "hessian_every": None,  # steps between two curvature estimates
    "package": None,  # the distribution to install
    "roles": {},  # state key → role in the memory ledger
}


def parts_of(config: Config) -> list[tuple[str, Config]]:
    """What a run builds from classes: optimizer, workload, measure, and further optimizers of the measure by role."""
    return [*((part, config[part]) for part in PARTS), *others(config["measure"]).items()]


def others(measure: Config) -> dict[str, Config]:
    """The further optimizers that a measure's YAML names, by their role in it."""
    return measure.get("optimizers") or {}


def key(part: str, spec: Config) -> str:
    """A text that is the same for the same optimizer, workload or measure."""
    return f"{part} {json.dumps(spec, sort_keys=True)}"


def about(spec: Config) -> Config:
    """What the YAML says about an optimizer, with the defaults filled in."""
    return ABOUT | (spec.get("about") or {})


def arguments(spec: Config) -> Config:
    """The constructor's arguments: everything but `about` and Hydra's own underscored keys."""
    return {name: value for name, value in spec.items() if name != "about" and not (name[0] == name[-1] == "_")}
