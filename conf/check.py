"""Can this configuration be run? Where it cannot, one clear line with the fix, before anything is written."""

import math
import re
from collections.abc import Callable, Iterable
from typing import TypeAlias, TypeGuard

from optimeter.measure.jobs.outcomes import Refused, nearest
from optimeter.measure.jobs.parts import ABOUT, PARTS, Config, others, parts_of
from optimeter.measure.records.naming import REPORT

Rule: TypeAlias = tuple[Callable[[object], bool], str]  # what it accepts, in words too


def whole(least: int) -> Rule:
    return (
        lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= least,
        f"a whole number of at least {least}",
    )


def positive(x: object) -> bool:
    return is_number(x) and 0 < x < math.inf


def is_number(x: object) -> TypeGuard[float]:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def one_of(*choices: object) -> Rule:
    return lambda x: x in choices, f"one of {', '.join(map(str, choices))}"


def maybe(rule: Rule) -> Rule:
    accepts, words = rule
    return lambda x: x is None or accepts(x), f"{words}, or null"


POSITIVE = (positive, "a number above 0")
FLAG = (lambda x: isinstance(x, bool), "true or false")
TEXT = (lambda x: isinstance(x, str) and x != "", "a name")
RULES: dict[str, Rule] = {
    "seed": (
        lambda x: isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 1 << 63,
        "a whole number from 0 to below 2⁶³",
    ),
    "device": TEXT,  # which there are is asked where torch is: measure/devices
    "dtype": one_of("float32", "bfloat16", "float16", "float64"),
    "steps": whole(1),
    "schedule": one_of("constant", "linear", "cosine"),
    "warmup_steps": whole(0),
    "clip_norm": maybe(POSITIVE),
    "accumulate": whole(1),
    "eval_every": maybe(whole(1)),
    "record_every": whole(1),
    "limit_seconds": maybe(POSITIVE),
    "baseline": TEXT,
    "rerun": FLAG,
    "dry": FLAG,
    "runs_dir": TEXT,
    "workload.target": maybe((is_number, "a number")),
}
ABOUT_RULES: dict[str, Rule] = {
    "parameters": one_of("plain", "named"),
    "closure": FLAG,
    "gradients": one_of("dense", "sparse", "both"),
    "hessian_every": maybe(whole(1)),
    "package": maybe(TEXT),
    "roles": (
        lambda x: isinstance(x, dict) and all(isinstance(word, str) for pair in x.items() for word in pair),
        "a mapping of the state's keys to names of roles",
    ),
}


def check(config: Config) -> None:
    """Raise Refused for the first value that cannot be; what a class thinks of its own arguments comes later."""
    for path, (accepts, words) in RULES.items():
        value, found = _lookup(config, path)
        if found and not accepts(value):
            raise Refused(f"{path} must be {words}, not {shown(value)}")
    check_name(config["name"])
    if config["warmup_steps"] > config["steps"]:
        raise Refused(f"warmup_steps={config['warmup_steps']} is more than steps={config['steps']}")
    lr = config["optimizer"].get("lr")
    if lr is not None and not (isinstance(lr, (int, float)) and not isinstance(lr, bool) and lr >= 0):
        raise Refused(f"optimizer.lr must be a number of at least 0, not {shown(lr)}")
    check_roles(config["measure"])
    for part, spec in parts_of(config):
        check_part(part, spec)


def check_name(name: object) -> None:
    """A run's name is a folder under runs_dir, never a path."""
    if not isinstance(name, str) or not name or len(name) > 60:
        raise Refused(f"name must be a text of 1 to 60 characters, not {shown(name)}")
    if name == REPORT:
        raise Refused(f"name={name} is where a report goes; choose another")
    if re.search(r"[/\\\x00-\x1f\x7f]", name) or name.startswith("."):
        raise Refused(
            f"name={shown(name)}: no slash, backslash or control character, and no dot in front; e.g. name=my_sweep"
        )


def check_roles(measure: Config) -> None:
    """The further optimizers of a measure have roles of their own, and are optimizers' names."""
    roles = others(measure)
    if not isinstance(roles, dict):
        raise Refused(f"measure.optimizers must be roles with an optimizer's name each, not {shown(roles)}")
    for role, spec in roles.items():
        if role in PARTS:
            raise Refused(f"measure.optimizers.{role}: a role must not be called {role}")
        if not isinstance(spec, dict):
            raise Refused(f"measure.optimizers.{role} must be the name of an optimizer, not {shown(spec)}")


def check_part(part: str, spec: Config) -> None:
    """The target is there, alone, and what is said about it has known names."""
    if not isinstance(spec.get("_target_"), str):
        raise Refused(f"{part}._target_ must be given: the dotted path of a class, {part}._target_=package.Class")
    own = ("_target_", "optimizers") if part == "measure" else ("_target_",)  # those are parts too
    for path in nested_targets({key: value for key, value in spec.items() if key not in own}):
        raise Refused(f"{part}.{path}: a class inside a class's arguments is not instantiated; pass plain values")
    check_about(part, spec.get("about"))


def check_about(part: str, said: object) -> None:
    """Its keys and values are known; of a workload or a measure only the package is asked for."""
    if said is None:
        return
    if not isinstance(said, dict):
        raise Refused(f"{part}.about must be keys with values, not {shown(said)}")
    known = ("package",) if part in ("workload", "measure") else tuple(ABOUT)
    for key, value in said.items():
        if key not in known:
            raise Refused(f"{part}.about.{key}: no such key{nearest(str(key), known)}")
        accepts, words = ABOUT_RULES[key]
        if not accepts(value):
            raise Refused(f"{part}.about.{key} must be {words}, not {shown(value)}")


def nested_targets(value: object, path: str = "") -> Iterable[str]:
    """Where `_target_` stands below the top."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        here = f"{path}.{key}".lstrip(".")
        if key == "_target_":
            yield here
        yield from nested_targets(part, here)


def _lookup(config: Config, path: str) -> tuple[object, bool]:
    value: object = config
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return None, False
        value = value[key]
    return value, True


def shown(value: object) -> str:
    """A value in a refusal, texts in quotes."""
    return repr(value) if isinstance(value, str) else str(value)
