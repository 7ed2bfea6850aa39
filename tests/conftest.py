"""What the tests share: running bench.py as a user does, and folders of a user's own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from optimeter.conf import CONF
from optimeter.conf.compose import complete, plain

PROJECT = Path(__file__).resolve().parent.parent
torch.set_num_threads(2)
# What workloads train once and keep is kept between test sessions too, and not in the user's home.
os.environ.setdefault("OPTIMETER_CACHE", str(PROJECT / ".pytest_cache" / "optimeter"))


def names(group: str) -> list[str]:
    """The YAML files of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides: str) -> dict[str, Any]:
    """The configuration that the command line would give."""
    os.environ.setdefault("OPTIMETER_SWEEP", "/nowhere")  # Hydra wants to know; nothing is written
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = plain(hydra_compose("bench", list(overrides)))
    complete(config, None)
    return config


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
