"""From the command line to plain configurations, in Hydra's hands."""

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from optimeter.conf import CONF
from optimeter.conf.check import check
from optimeter.conf.explain import explain
from optimeter.conf.shapes import parse_shapes
from optimeter.measure.jobs.outcomes import Refused
from optimeter.measure.jobs.parts import PARTS, Config, others
from optimeter.measure.jobs.progress import counted
from optimeter.measure.records.naming import VOLATILE, flat
from optimeter.measure.records.read import Unreadable, read_config

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from optimeter.conf.composer import Composed, Launcher


MANDATORY = "???"  # a value that must come from elsewhere, in OmegaConf's words
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def compose(run_elsewhere: Callable[[Config], None], begin: Callable[[], None] = lambda: None) -> list[Config]:
    """Let Hydra compose the jobs that `sys.argv` asks for, all of them before the first one runs.

    `begin` is called before the first is composed. Under another launcher than Hydra's basic one the list is empty:
    `run_elsewhere` is called for each job where the launcher puts it. Raises Refused for what cannot be composed, or
    cannot be run.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins
    from hydra.core.utils import setup_globals
    from hydra.errors import HydraException
    from hydra.plugins.sweeper import Sweeper
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from optimeter.conf.composer import Composed, Composer, plain

    check_flags()
    gathered = Gathered(shlex.join(["python", "bench.py", *sys.argv[1:]]))

    def job(cfg: "DictConfig") -> None:
        """A single job, or one of a sweep where a launcher put it."""
        begin()
        whole = HydraConfig.get()
        swept = whole.mode is not None and whole.mode.name == "MULTIRUN"
        composed = Composed(plain(cfg), dict(whole.runtime.choices), list(whole.overrides.task), swept)
        if composed.choices["hydra/launcher"] == "basic":
            gathered.add(composed)
        else:
            run_elsewhere(configuration(composed, gathered.typed))

    def launch(launcher: "Launcher", job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list:
        """In the place of Hydra's own, which composes each job from the files: 70 ms a job."""
        begin()
        setup_globals()
        composer = Composer(launcher.hydra_context.config_loader, launcher.config)
        for overrides in counted(job_overrides, "jobs are composed"):
            gathered.add(composer.compose(overrides))
        return []

    Sweeper.validate_batch_is_legal = lambda self, batch: None  # type: ignore[method-assign]
    Plugins.instance().class_name_to_class[BASIC].launch = launch  # type: ignore[attr-defined]
    try:
        hydra.main(config_path=str(CONF), config_name="bench", version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise Refused(explain(error)) from error
    return gathered.whole()


def check_flags() -> None:
    """Raise Refused, in one line, where Hydra would print how it is used."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise Refused(f"{message}; flags such as -m stand before all choices or behind them, not between")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(sys.argv[1:])


class PassedOver(Refused):
    """A swept `any`, which names no class."""


class Gathered:
    """The configurations of a sweep, and what stands in its way."""

    def __init__(self, typed: str) -> None:
        self.typed = typed  # the command line
        self.configs: list[Config] = []
        self.refusals: list[str] = []
        self.passed_over = 0

    def add(self, composed: "Composed") -> None:
        """Check one more job."""
        try:
            self.configs.append(configuration(composed, self.typed))
        except PassedOver:
            self.passed_over += 1
        except Refused as refusal:
            self.refusals.append(str(refusal))

    def whole(self) -> list[Config]:
        """All of them; raises Refused with the first that cannot be."""
        if self.passed_over:
            print(f"bench.py: {self.passed_over} jobs with `any` are passed over: it names no class", file=sys.stderr)
        if self.refusals:
            more = len(set(self.refusals)) - 1
            raise Refused(self.refusals[0] + (f" (and {more} more like this)" if more else ""))
        return self.configs


def configuration(composed: "Composed", typed: str) -> Config:
    """A job's configuration as plain, complete, checked data; raises Refused, or PassedOver."""
    config, chosen = composed.config, composed.choices
    check_mappings(config)
    if config["replay"]:
        again = recorded(Path(config["replay"]))
        fixed = ("choices", "baseline") if others(again["measure"]) else ("choices",)
        free = tuple(name for name in VOLATILE if name not in fixed)
        check_alone(composed.overrides, free)
        config = again | {name: config[name] for name in free}
    else:
        config["choices"] = {part: chosen[part] for part in PARTS}
        name_others(config)
        put_shapes(config, composed.overrides)
    for part in PARTS:
        spec = config[part] = given(f"{part}.", config[part], config["choices"][part])
        if "_target_" not in spec and composed.swept:
            raise PassedOver(f"{part}=any names no class")
        if config["choices"][part] == "any":
            config["choices"][part] = spec.get("_target_", "any")
    complete(config, chosen.get("experiment"))
    check(config)
    return config | {"command": typed}


def check_mappings(config: Config) -> None:
    """Raise Refused for a part whose YAML holds a list."""
    for part in PARTS:
        if not isinstance(config[part], dict):
            raise Refused(f"{part} must be keys with values, as _target_: package.Class, not {config[part]}")


def given(where: str, spec: Config, name: str | None) -> Config:
    """What is given of a part: raises Refused for a value that its YAML leaves to the command line by `???`.

    `any` has such keys that need not be given, and a class that is missing is refused where it is checked.
    """
    spec = {key: value for key, value in spec.items() if value != MANDATORY or (key != "_target_" and name != "any")}
    for path, value in flat(spec).items():
        if value == MANDATORY:
            raise Refused(f"{where}{path} must be given")
    return spec


def name_others(config: Config) -> None:
    """Compose the further optimizers that the measure names, each in its role."""
    roles = others(config["measure"])
    if not isinstance(roles, dict):
        return  # `check` refuses it
    for role, name in roles.items():
        if isinstance(name, str) and name:
            roles[role] = dict(optimizer_named(role, name))
            config["choices"][role] = name


def put_shapes(config: Config, overrides: Iterable[str]) -> None:
    """Put the shapes that a measure is given in the workload's place."""
    given = config["measure"].get("shapes")
    if given is None:
        return
    for override in overrides:
        if override.lstrip("+~").startswith(("workload=", "workload.", "workload@")):
            raise Refused(f"{override}: measure.shapes stands in the workload's place; give one of the two")
    config["choices"]["workload"] = "shapes"
    config["workload"] = {
        "_target_": "optimeter.workloads.shapes.Shapes",
        "_convert_": "all",
        "shapes": parse_shapes(given),
        "steps": 1,
    }


@cache
def optimizer_named(role: str, name: str) -> Config:
    """The configuration of `optimizer=name`, for the optimizer in a role; raises Refused where there is none."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    # In a launcher's worker Hydra is not set up, and only our own files are found.
    ready = GlobalHydra.instance().is_initialized()
    try:
        with nullcontext() if ready else initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra_compose("bench", [f"optimizer={name}"]).optimizer
            whole: Config = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException) as error:
        raise Refused(f"{role}: {explain(error)}") from error
    if not isinstance(whole, dict):
        raise Refused(f"{role}={name}: its YAML must be keys with values, not {whole}")
    spec = given(f"{role}={name}: ", whole, name)
    if "_target_" not in spec:
        raise Refused(f"{role}={name} names no class; a {role} of your own is a file in --config-dir")
    return spec


def check_alone(overrides: Iterable[str], free: Sequence[str]) -> None:
    """A run made again is the run that it was: beside `replay` only what does not make another run can be said."""
    for one in overrides:
        key = one.lstrip("+~").partition("=")[0]
        if key not in free:
            raise Refused(f"{one}: replay makes a run again as it was; beside it only {', '.join(free)}")


def recorded(folder: Path) -> Config:
    """The configuration in a record's folder (or at the path of a YAML file), as this version would write it."""
    try:
        config: Config = read_config(folder)
    except FileNotFoundError as error:
        raise Refused(f"replay={folder}: there is no {error.filename}") from error
    except Unreadable as problem:
        raise Refused(f"replay={problem}") from problem
    if not {*PARTS, "choices"} <= set(config):
        raise Refused(f"replay={folder}: this is not the configuration of a run")
    return config


def complete(config: Config, experiment: str | None) -> None:
    """Put numbers where the configuration left the choice to the workload or the optimizer."""
    if config["name"] is None:
        config["name"] = experiment or "default"
    workload = config["workload"]
    for name in ("steps", "eval_every"):
        if config[name] is None:
            config[name] = workload.get(name)
        workload[name] = config[name]
