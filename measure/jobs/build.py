"""The one place where names in a configuration become classes and objects.

A `_target_` runs code: a configuration is a program. Whatever the name resolves to must be a subclass of
`torch.optim.Optimizer`, of `Workload` or of `Measure` before it is called, a class inside a class's arguments is
refused, and a replayed configuration may only name packages on the list.
"""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Unpack, get_args, get_origin, get_type_hints

from torch import Tensor
from torch.optim import Optimizer

from optimeter.measure.jobs.environment import installed
from optimeter.measure.jobs.outcomes import Refused, Unsupported, nearest
from optimeter.measure.jobs.parts import Config, about, arguments, others
from optimeter.measure.methods.base import Build, Measure
from optimeter.workloads.core.workload import Workload

KINDS: dict[str, type] = {"workload": Workload, "measure": Measure}  # every other part is an optimizer
# Top-level package → the distribution to install; the only targets that a replayed configuration may name.
PEERS = {
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "transformers": "transformers",
    "schedulefree": "schedulefree",
    "prodigyopt": "prodigyopt",
    "pytorch_optimizer": "pytorch-optimizer",
}
ROOMS = ("bench", "conf", "measure", "optimizers", "reports", "workloads")  # ours stand in a checkout under these
INSTALL = "pip install it, or run where its file is"
CARRIED_OUT = ("optimizers", "shapes")  # of a measure's keys
LISTED = (
    "optimeter.optimizers.",
    "optimeter.workloads.",
    "optimeter.measure.methods.",
    "torch.optim.",
    *(f"{name}." for name in PEERS),
)


def resolve(part: str, spec: Config, listed_only: bool = False) -> type:
    """The class that `spec` names. Raises Refused, or Unsupported where a known package is not installed."""
    target = spec["_target_"]
    where = f"{part}._target_={target}"
    if listed_only and not target.startswith(LISTED):
        raise Refused(f"{where}: a replayed configuration may only name {', '.join(LISTED)}…")
    found = _locate(where, target, about(spec)["package"])
    kind = KINDS.get(part, Optimizer)
    if not (isinstance(found, type) and issubclass(found, kind)):
        base = f"{kind.__module__.removesuffix('.optimizer')}.{kind.__name__}"
        raise Refused(f"{where} is not {'an' if part == 'optimizer' else 'a'} {part}: not a subclass of {base}")
    return found


def _locate(where: str, target: str, package: str | None) -> object:
    """Import the longest prefix of a dotted path that is a module, then follow the attributes."""
    names = target.split(".")
    if len(names) < 2 or not all(name.isidentifier() for name in names):
        raise Refused(f"{where}: not a dotted path package.Class")
    found, left = _import(where, names, package)
    for name in left:
        if not hasattr(found, name):
            raise Refused(f"{where}: no {name} in {getattr(found, '__name__', found)}{nearest(name, dir(found))}")
        found = getattr(found, name)
    return found


def _import(where: str, names: list[str], package: str | None) -> tuple[object, list[str]]:
    if names[0] in ROOMS and not _is_theirs(names[0]):
        raise Refused(f"{where}: there is no module {names[0]}; {_fix(where, names)}")
    for length in range(len(names) - 1, 0, -1):
        module = ".".join(names[:length])
        try:
            return importlib.import_module(module), names[length:]
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if module == missing or module.startswith(f"{missing}."):
                continue  # it is the target's own module that is not there: try a shorter path
            raise Unsupported(f"pip install {missing.partition('.')[0]}: {names[0]} needs it") from error
    wanted = package or PEERS.get(names[0])
    if wanted:
        raise Unsupported(f"pip install {wanted}")
    raise Refused(f"{where}: there is no module {names[0]}; {INSTALL}")


def _fix(where: str, names: list[str]) -> str:
    """What to write for a class whose module is called as a room of ours: ours, where there is such a class."""
    ours = f"optimeter.{'.'.join(names)}"
    try:
        _locate(where, ours, None)
    except (Refused, Unsupported):
        return INSTALL
    return f"ours is {ours}"


def _is_theirs(room: str) -> bool:
    """Whether a module named as one of our rooms is the user's own; a room of ours stands in `optimeter/` too."""
    found = PathFinder.find_spec(room)
    if found is None:
        return False
    places = [Path(place) for place in found.submodule_search_locations or [found.origin or ""]]
    return not any((place.parent / "optimeter" / place.name).exists() for place in places)


def check_arguments(part: str, cls: type, spec: Config) -> None:
    """Raise Refused for an argument that the constructor does not take, or one that it needs and lacks."""
    parameters = inspect.signature(cls).parameters
    known = accepted(parameters)
    given = measure_arguments(cls, spec) if part == "measure" else arguments(spec)
    for key in given:
        if known is not None and key not in known:
            raise Refused(f"{part}.{key}: {cls.__name__} takes no such argument{nearest(key, known)}")
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    for name in needed if part in KINDS else needed[1:]:
        if name not in given:
            raise Refused(f"{part}.{name} must be given: {cls.__name__} has no default for it; +{part}.{name}=…")


def accepted(parameters: Mapping[str, inspect.Parameter]) -> set[str] | None:
    """The names that a signature takes, those of ``**common: Unpack[SomeTypedDict]`` too; None where it takes any."""
    names = set(parameters)
    for p in parameters.values():
        if p.kind is p.VAR_KEYWORD:
            if get_origin(p.annotation) is not Unpack:
                return None
            names = (names | set(get_type_hints(get_args(p.annotation)[0]))) - {p.name}
    return names


def optimizer_builder(spec: Config, listed_only: bool = False, part: str = "optimizer") -> Build:
    """A function from (name, parameter) pairs to the optimizer."""
    cls, named = resolve(part, spec, listed_only), about(spec)["parameters"] == "named"

    def build(parameters: Sequence[tuple[str, Tensor]]) -> Optimizer:
        return cls(parameters if named else [p for _, p in parameters], **arguments(spec))

    return build


def build_measure(spec: Config, listed_only: bool = False) -> Measure:
    """The measure; raises Refused with the constructor's line for values that cannot be."""
    cls = resolve("measure", spec, listed_only)
    check_optimizers(cls, spec)
    try:
        return cls(**measure_arguments(cls, spec))
    except ValueError as error:
        raise Refused(headed("measure", error)) from error


def check_optimizers(cls: type[Measure], spec: Config) -> None:
    """Raise Refused where the further optimizers that the measure needs are not those that it is given."""
    roles = others(spec)
    for role in cls.optimizers:
        if role not in roles:
            raise Refused(f"measure.optimizers.{role} must be given: {cls.__name__} needs one, by its YAML's name")
    for role in roles:
        if role not in cls.optimizers:
            hint = nearest(role, cls.optimizers)
            raise Refused(f"measure.optimizers.{role}: {cls.__name__} takes no such optimizer{hint}")


def measure_arguments(cls: type, spec: Config) -> Config:
    """The constructor's arguments; not what is carried out for it, unless it asks: other optimizers, shapes."""
    known = accepted(inspect.signature(cls).parameters)
    return {name: value for name, value in arguments(spec).items() if name not in CARRIED_OUT or name in (known or ())}


def headed(part: str, error: Exception) -> str:
    """The first line of an error, with the part that it speaks of in front."""
    line = str(error).partition("\n")[0]
    return line if line.startswith(f"{part}.") else f"{part}: {line}"


def build_workload(spec: Config, listed_only: bool = False) -> Workload:
    """The workload; raises Unsupported where a library of its is not installed."""
    cls = resolve("workload", spec, listed_only)
    check_libraries(cls)
    return cls(**arguments(spec))


def check_libraries(workload: type[Workload]) -> None:
    """Raise Unsupported where a distribution that the workload's model is made of is not installed."""
    missing = [name for name in workload.libraries if installed(name) is None]
    if missing:
        wanted = f"'{workload.installed_by}'" if workload.installed_by else " ".join(missing)
        raise Unsupported(f"pip install {wanted}: {workload.__name__} needs {', '.join(missing)}")
