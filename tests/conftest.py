"""What the tests share: running bench.py as a user does, and folders of a user's own."""

import json
import os
import subprocess
import sys
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
from tests.twice import loaded_twice

PROJECT = Path(__file__).resolve().parent.parent
STUDY = PROJECT / "reports" / "documents"  # of the five documents: a folder of tables and sweeps, as a user's may be
torch.set_num_threads(2)
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


class Ran(subprocess.CompletedProcess):
    """A finished bench.py, with the records that lie in its folder."""

    folder: Path

    @property
    def records(self) -> list[dict[str, Any]]:
        """All results under runs/, by folder name."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("runs/*/*/result.json"))]

    @property
    def statuses(self) -> list[str]:
        """The first word of each line of the summary."""
        return [line.split()[0] for line in self.stdout.splitlines()]


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Ran]:
    """Run bench.py in an empty folder; `environment` adds variables."""

    def run(*arguments: str, folder: Path = tmp_path, environment: dict[str, str] | None = None) -> Ran:
        command = [sys.executable, str(PROJECT / "bench.py"), *arguments]
        variables = {**os.environ, "TORCHDYNAMO_DISABLE": "1", **(environment or {})}
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
        ran = Ran(done.args, done.returncode, done.stdout, done.stderr)
        ran.folder = folder
        return ran

    return run
