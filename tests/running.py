"""Running bench.py as a user does: in a process of its own, or in this one, which does the same much sooner."""

import io
import json
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from optimeter import bench

PROJECT = Path(__file__).resolve().parent.parent


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


def in_a_process(arguments: tuple[str, ...], folder: Path, environment: dict[str, str]) -> Ran:
    """Run the file bench.py; `environment` adds variables."""
    command = [sys.executable, str(PROJECT / "bench.py"), *arguments]
    variables = {**os.environ, "TORCHDYNAMO_DISABLE": "1", **environment}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    ran = Ran(done.args, done.returncode, done.stdout, done.stderr)
    ran.folder = folder
    return ran


def in_this_process(arguments: tuple[str, ...], folder: Path) -> Ran:
    """Call the command's `main`. Runs are made in children all the same, from a fork server that all tests share."""
    command = [str(PROJECT / "bench.py"), *arguments]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pytest's filters are not the user's
        patch.chdir(folder)
        patch.setattr(sys, "argv", command)
        patch.setattr(sys, "path", [str(PROJECT), *sys.path])  # as the file's folder is for a script
        patch.setitem(sys.modules, "__main__", ModuleType("__main__"))  # or each child would import pytest
        patch.setenv("HYDRA_FULL_ERROR", "")  # to be put back
        patch.setenv(bench.SWEEP, "")
        try:
            bench.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                print(end.code, file=err)
    ran = Ran(command, code, out.getvalue(), err.getvalue())
    ran.folder = folder
    return ran
