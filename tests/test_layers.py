"""Which room may import which: make check holds the tree to it, and here each forbidden way in is tried."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

pytest.importorskip("importlinter")
TREE = ("pyproject.toml", "optimeter", "bench.py", "conf", "measure", "optimizers", "reports", "workloads")
OWN_NAMES = "no room imports the package's own names, which lead to all rooms"
TOP_LEVEL = "a room is imported as optimeter.ROOM; a top-level one is somebody else's"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package that a test may spoil."""
    folder = tmp_path_factory.mktemp("tree")
    for name in TREE:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(PROJECT / name, folder / name)
    return folder


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("reports/plots.py", "from optimeter import OptimizerMonitor", OWN_NAMES),
        ("optimizers/lion.py", "from optimeter import plan", OWN_NAMES),
        ("workloads/toy.py", "import optimeter", OWN_NAMES),
        ("reports/plots.py", "from measure.devices import names", TOP_LEVEL),
        ("optimizers/lion.py", "import workloads.core.cache", TOP_LEVEL),
        ("measure/statistics.py", "import conf", TOP_LEVEL),
        ("workloads/toy.py", "from optimeter import optimizers", "workloads import no other room"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(tree: Path, file: str, line: str, contract: str) -> None:
    path = tree / file
    code = path.read_text()
    path.write_text(f"{code}\n{line}\n")
    try:
        ran = subprocess.run(
            [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"],
            cwd=tree,
            capture_output=True,
            text=True,
        )
    finally:
        path.write_text(code)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert f"{contract} BROKEN" in " ".join(ran.stdout.split())
