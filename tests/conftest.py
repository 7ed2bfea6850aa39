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

PROJECT = Path(__file__).resolve().parent.parent
torch.set_num_threads(2)


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
