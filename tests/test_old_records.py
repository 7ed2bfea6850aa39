"""Folders of schema 1 are read, reported, compared and replayed, and stay as they are."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from optimeter.measure.records.read import read_records
from optimeter.measure.records.schema import SCHEMA
from optimeter.reports.compare import compare
from tests.conftest import PROJECT, Ran

Bench = Callable[..., Ran]
PUBLISHED = PROJECT / "results" / "cpu-2-cores"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A sweep of schema 1: two optimizers on the toy workload."""
    sweep = tmp_path / "runs" / "old"
    for pattern in ("adamw-toy-*", "torch_adamw-toy-*"):
        folder = min(PUBLISHED.glob(pattern))
        shutil.copytree(folder, sweep / folder.name)
    return sweep


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*-toy-*/*")}


def test_a_sweep_of_schema_1_is_reported(old: Path) -> None:
    before = contents(old)
    assert {json.loads(path.read_text())["schema"] for path in old.glob("*/result.json")} == {1}
    assert {record.result.schema for record in read_records(old)} == {SCHEMA}
    command = [sys.executable, "-m", "optimeter.reports", str(old)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    page = (old / "report" / "index.html").read_text()
    assert all(folder.name in page for folder in old.iterdir() if (folder / "result.json").exists())
    assert contents(old).items() >= before.items()


def test_a_run_of_schema_1_is_replayed_and_compared_with_what_it_was(old: Path, bench: Bench, tmp_path: Path) -> None:
    before = contents(old)
    (folder,) = old.glob("adamw-toy-*")
    ran = bench(f"replay={folder}", "name=new")
    assert ran.statuses == ["ok"], ran.stderr
    (new,) = read_records(tmp_path / "runs" / "new")
    (was,) = [record for record in read_records(old) if record.folder == folder]
    assert new.result.quality.final_loss == pytest.approx(was.result.quality.final_loss, rel=1e-4)
    assert new.result.memory.state_bytes == was.result.memory.state_bytes
    assert new.result.optimizer_target == was.result.optimizer_target
    table = compare([was], [new], ("old", "new"))
    assert len(table.rows) == 1, "what was made and what is made now are one setting and one optimizer"
    assert contents(old) == before
