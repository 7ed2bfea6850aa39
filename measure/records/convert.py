"""Records of older schemas, made what this version would have written.

Schema 1 → 2: the project's own classes moved into the package `optimeter`, and a measure is named by its class.
"""

from collections.abc import Callable

from optimeter.measure.records.fields import JSON, Malformed, described
from optimeter.measure.records.schema import SCHEMA

# Where the classes of schema 1 were, and where they are.
MOVED = {"optimizers.": "optimeter.optimizers.", "workloads.": "optimeter.workloads."}
OLD = tuple(MOVED)
MEASURES = {
    "train": "optimeter.measure.methods.Train",
    "step": "optimeter.measure.methods.Step",
    "plan": "optimeter.measure.methods.Plan",
    "overhead": "optimeter.measure.methods.Overhead",
}

RETIRED = ("coupled", "nan", "peer", "reference", "train_mode")  # keys of an optimizer's `about` that nothing read
# Class of a workload → its `shaped_by` and `follows`, which schema 1 did not keep.
SHAPED_BY = {"Embedding": ["rows", "dim"], "Layer": ["shape"], "SDLora": ["rank"]}
FOLLOWS = {"Embedding": ["sparse"]}


def to_current(result: dict[str, JSON]) -> dict[str, JSON]:
    """What result.json holds, in today's schema. Raises Malformed for a schema that is not known."""
    schema = result.get("schema")
    if type(schema) is not int or schema < 1:
        raise Malformed(f"is {described(schema)}: this is no record of Optimeter", "schema")
    if schema > SCHEMA:
        raise Malformed(f"is {described(schema)}: a newer version made it, this one reads {SCHEMA} and older", "schema")
    for version in range(schema, SCHEMA):
        result = UPDATES[version](result)
    return result


def config_to_current(config: dict[str, JSON]) -> dict[str, JSON]:
    """The same for what config.yaml holds, which does not tell its schema: until 1 a measure had a kind."""
    measure = config.get("measure")
    return config_of_schema_1(config) if isinstance(measure, dict) and "kind" in measure else config


def result_of_schema_1(result: dict[str, JSON]) -> dict[str, JSON]:
    """A result of schema 1 in schema 2."""
    config, target = result.get("config"), result.get("optimizer_target")
    result = {**result, "schema": 2}
    if isinstance(config, dict):
        result["config"] = config_of_schema_1(config)
        name = class_name(config.get("workload"))
        result |= {"shaped_by": SHAPED_BY.get(name), "follows": FOLLOWS.get(name)}
    if isinstance(target, str):
        result["optimizer_target"] = renamed(target)
    return result


def config_of_schema_1(config: dict[str, JSON]) -> dict[str, JSON]:
    """A configuration of schema 1 in schema 2."""
    config = dict(config)
    for part in ("optimizer", "workload"):
        config[part] = retargeted(config.get(part))
    measure, choices = config.get("measure"), config.get("choices")
    if not isinstance(measure, dict) or "kind" not in measure:
        return config
    kind = measure["kind"]
    arguments = {name: value for name, value in measure.items() if name not in ("kind", "baseline")}
    config["measure"] = {"_target_": MEASURES.get(kind) if isinstance(kind, str) else None, **arguments}
    if isinstance(choices, dict):
        config["choices"] = choices = {**choices, "measure": kind}
    if "baseline" in measure:
        config["measure"]["optimizers"] = {"baseline": retargeted(measure["baseline"])}
        if isinstance(choices, dict):
            choices["baseline"] = config.get("baseline")
    return config


def retargeted(spec: object) -> JSON:
    """An optimizer's or workload's arguments with the class where it is now, without what nothing reads."""
    if not isinstance(spec, dict):
        return spec
    spec = dict(spec)
    target, about = spec.get("_target_"), spec.get("about")
    if isinstance(target, str):
        spec["_target_"] = renamed(target)
    if isinstance(about, dict):
        spec["about"] = {name: value for name, value in about.items() if name not in RETIRED}
    return spec


def class_name(spec: object) -> str:
    """The last part of a target, or nothing."""
    target = spec.get("_target_") if isinstance(spec, dict) else None
    return target.rpartition(".")[2] if isinstance(target, str) and target.startswith(OLD) else ""


def renamed(target: str) -> str:
    """The name of a class that moved, as it is now; any other as it is."""
    for old, new in MOVED.items():
        if target.startswith(old):
            return new + target.removeprefix(old)
    return target


UPDATES: dict[int, Callable[[dict[str, JSON]], dict[str, JSON]]] = {1: result_of_schema_1}
