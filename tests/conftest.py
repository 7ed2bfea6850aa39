"""What the tests share: running bench.py as a user does, and folders of a user's own."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from optimeter.conf import CONF
from optimeter.conf.compose import complete
from optimeter.conf.composer import plain
from optimeter.measure.jobs.isolate import start_server
from tests.running import PROJECT, Ran, in_a_process, in_this_process
from tests.twice import loaded_twice

STUDY = PROJECT / "reports" / "documents"  # of the five documents: a folder of tables and sweeps, as a user's may be
# Beside another worker of pytest-xdist one core is left for each.
THREADS = max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
torch.set_num_threads(THREADS)
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # of runs
# What workloads train once and keep is kept between test sessions too, and not in the user's home.
os.environ.setdefault("OPTIMETER_CACHE", str(PROJECT / ".pytest_cache" / "optimeter"))


def names(group: str) -> list[str]:
    """The YAML files of a group, ours and the study's."""
    return sorted(path.stem for folder in (CONF, STUDY) for path in (folder / group).glob("*.yaml"))


def composed(*overrides: str) -> dict[str, Any]:
    """The configuration that the command line would give."""
    os.environ.setdefault("OPTIMETER_SWEEP", "/nowhere")  # Hydra wants to know; nothing is written
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = plain(hydra_compose("bench", list(overrides)))
    complete(config, None)
    return config


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """On CUDA, what waits for the device raises. The mode is the whole process's: it is set back whatever happens."""
    if not torch.cuda.is_available():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype once; as an error that would leave it set
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="session", autouse=True)
def one_name_for_each_file() -> Iterator[None]:
    """After the last test: none of our files was loaded under two names."""
    yield
    assert loaded_twice() == []


@pytest.fixture(scope="session", autouse=True)
def fork_server() -> None:
    """Start what all runs come from, which takes two seconds; nothing waits for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        start_server()


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Ran]:
    """Run bench.py in an empty folder; with `environment`, which adds variables, in a process of its own."""

    def run(*arguments: str, folder: Path = tmp_path, environment: dict[str, str] | None = None) -> Ran:
        if environment is None:
            return in_this_process(arguments, folder)
        return in_a_process(arguments, folder, environment)

    return run
