"""Hydra's composition of many jobs, with what is the same between them done once.

Hydra reads every file again for each job, its own configuration included: 70 ms. Here files are read once, Hydra's own
are left out, jobs that choose the same files share their merged whole, and only a job's own values are put in: 1 ms.
All steps are Hydra's functions, so a job's configuration is the one that Hydra composes (tests/test_composer.py).
"""

import copy
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from optimeter.measure.jobs.parts import Config

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.plugins.config_source import ConfigResult


class HydraContext(Protocol):
    """What is used of the context that Hydra's launchers are given."""

    config_loader: "ConfigLoaderImpl"


class Launcher(Protocol):
    """What is used of Hydra's basic launcher."""

    hydra_context: HydraContext
    config: DictConfig


@dataclass(frozen=True)
class Composed:
    """One job as Hydra composes it."""

    config: Config  # plain data, interpolations resolved, without Hydra's own node
    choices: Mapping[str, str | None]  # group → the file that was chosen in it
    overrides: Sequence[str]  # of the command line, of this job
    swept: bool = False  # one of several


@dataclass(frozen=True)
class Base:
    """What all jobs that choose the same files have in common."""

    pickled: bytes  # the merged files: a copy of a DictConfig is four times as slow
    choices: Mapping[str, str | None]
    hydra: bool  # whether a value asks Hydra about the job that it is in


class Files(CachingConfigRepository):
    """Files that are read once; what is merged is a copy, since merging changes it."""

    def __init__(self, read: CachingConfigRepository) -> None:
        self.delegate = read
        self.cache = {}

    def load_config(self, config_path: str) -> "ConfigResult | None":
        return copy.deepcopy(self.delegate.load_config(config_path))


class Composer:
    """Composes jobs as `loader` would, below the command line's `master` configuration."""

    def __init__(self, loader: "ConfigLoaderImpl", master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.name: str = master.hydra.job.config_name
        self.hydra_overrides: list[str] = list(master.hydra.overrides.hydra)
        parsed, self.read = loader._parse_overrides_and_create_caching_repo(self.name, self.hydra_overrides)
        self.parsed: dict[str, Override] = dict(zip(self.hydra_overrides, parsed, strict=True))
        self.bases: dict[tuple[str, ...], Base] = {}

    def compose(self, overrides: Sequence[str]) -> Composed:
        """One job of a sweep; raises what Hydra raises where it cannot be composed."""
        try:
            return self._compose(overrides)
        except (HydraException, OmegaConfBaseException):
            return self._as_hydra_does(overrides)  # it raises the same, with Hydra's own words around it

    def _compose(self, overrides: Sequence[str]) -> Composed:
        parsed = [self._parse(text) for text in overrides]
        self.loader.validate_sweep_overrides_legal(parsed, RunMode.RUN, from_shell=True)
        choices = [override for override in parsed if self._chooses_a_file(override)]
        base = self._base(tuple(str(override.input_line) for override in choices))
        if base.hydra:
            return self._as_hydra_does(overrides)
        config: DictConfig = pickle.loads(base.pickled)
        self.loader._apply_overrides_to_config([one for one in parsed if one not in choices], config)
        return Composed(plain(config), base.choices, overrides, swept=True)

    def _parse(self, text: str) -> Override:
        if text not in self.parsed:
            (self.parsed[text],) = OverridesParser.create(config_loader=self.loader).parse_overrides([text])
        return self.parsed[text]

    def _chooses_a_file(self, override: Override) -> bool:
        return self.read.group_exists(override.key_or_group) and not isinstance(override.value(), dict)

    def _base(self, choices: tuple[str, ...]) -> Base:
        if choices not in self.bases:
            self.bases[choices] = self._merged(choices)
        return self.bases[choices]

    def _merged(self, choices: tuple[str, ...]) -> Base:
        defaults: DefaultsList = create_defaults_list(
            repo=self.read,
            config_name=self.name,
            overrides_list=[self._parse(text) for text in [*self.hydra_overrides, *choices]],
            prepend_hydra=True,
            skip_missing=False,
        )
        ours = [one for one in defaults.defaults if not str(one.config_path).startswith("hydra/")]
        config = self.loader._compose_config_from_defaults_list(ours, Files(self.read))
        OmegaConf.set_struct(config, True)
        with open_dict(config):
            config.pop("hydra", None)
        OmegaConf.copy_cache(from_config=self.master, to_config=config)
        hydra = "${hydra:" in str(OmegaConf.to_container(config))
        return Base(pickle.dumps(config), defaults.overrides.known_choices, hydra)

    def _as_hydra_does(self, overrides: Sequence[str]) -> Composed:
        config = self.loader.load_sweep_config(self.master, list(overrides))
        HydraConfig.instance().set_config(config)
        choices = dict(config.hydra.runtime.choices)
        with open_dict(config):
            del config["hydra"]
        return Composed(plain(config), choices, overrides, swept=True)


def plain(config: DictConfig) -> Config:
    """As dicts and lists, interpolations resolved; beside OmegaConf's own a YAML file may say ${equal:one,other}."""
    OmegaConf.register_new_resolver("equal", lambda one, other: one == other, replace=True)
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
