"""Tables of a user's own: a function that a YAML file in --config-dir names; what cannot be made is one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from optimeter.reports.__main__ import main
from optimeter.reports.plugins import GENERAL, Unusable, load
from tests.conftest import PROJECT
from tests.test_reports import record, write

MY_TABLES = """
from optimeter.reports import Cell, Table, number


def losses(records, digits=3):
    rows = [[Cell(run.name, run.name, (run,)), Cell(run.run_name(), number(1.0, digits))] for run in records]
    return Table("losses", "losses: of each run", ("run", "loss"), rows)


def fine(records, digits=3):
    rows = [[Cell(record.name, record.name, (record,)), Cell(1.0, number(1.0, digits))] for record in records]
    return Table("fine", "fine: of each run", ("run", "loss"), rows)


def nothing(records):
    return None


def leaves(records):
    raise SystemExit(3)


def no_table(records):
    return [1, 2]


def ragged(records):
    return Table("ragged", "ragged", ("a", "b"), [[Cell(1)]])


def elsewhere(records):
    return Table("../outside", "outside", ("a",), [[Cell(1)]])


def twin(records):
    return Table("comparison-1", "twin", ("a",), [[Cell(1)]])


def untold(records):
    return Table("untold", "untold", ("a",), [[Cell(1, 2)]])


number_of_runs = 3
"""
# What a YAML holds → a part of the line that names it.
BROKEN = {
    "_target_: my_own_tables.losses": "AttributeError: 'Record' object has no attribute 'run_name'",
    "_target_: my_own_tables.fine\noder: 3": "TypeError: fine() got an unexpected keyword argument 'oder'",
    "_target_: my_own_tables.leaves": "SystemExit: 3",
    "_target_: my_own_tables.no_table": "it returned no Table but a list",
    "_target_: my_own_tables.ragged": "row 1 has 1 cells for 2 columns",
    "_target_: my_own_tables.elsewhere": "a table's name is of letters",
    "_target_: my_own_tables.twin": "there is another table called comparison-1",
    "_target_: my_own_tables.untold": "a cell's text is a str, not 2",
    "_target_: my_own_tables.number_of_runs": "my_own_tables.number_of_runs is no function but a int",
    "_target_: my_own_tables.los": "cannot be imported: AttributeError",
    "_target_: my_own_table.losses": "cannot be imported: ModuleNotFoundError",
    "_target_: losses": "_target_ must be the dotted path of a function",
    "section: 1": "_target_ must be the dotted path of a function",
    "_target_: my_own_tables.fine\norder: first": "order must be a number",
    "- _target_: my_own_tables.fine": "it holds no mapping",
    "": "it holds no mapping",
    "_target_: [": "it cannot be read",
    "_target_: !!python/name:os.system": "it cannot be read",
}


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of a user's own with a module of tables; its YAML files are the test's."""
    folder = tmp_path / "theirs"
    (folder / "table").mkdir(parents=True)
    (folder / "my_own_tables.py").write_text(MY_TABLES)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write(tmp_path / "runs", record("adamw"))


def test_a_table_of_ones_own_stands_in_the_report(theirs: Path, runs: Path) -> None:
    (theirs / "table" / "a.yaml").write_text("_target_: my_own_tables.fine\nsection: What <I> saw\ndigits: 6\n")
    (theirs / "table" / "b.yaml").write_text("_target_: my_own_tables.nothing\n")
    for given in (["--config-dir", "theirs"], ["-cd", "theirs"], ["--config-dir=theirs"]):
        command = [sys.executable, "-m", "optimeter.reports", *given, "runs"]
        done = subprocess.run(
            command, cwd=runs.parent, env={"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        page = (runs / "report" / "index.html").read_text()
        assert "<h2>What &lt;I&gt; saw</h2>" in page
        assert "python -m reports --config-dir=theirs runs" in page
        assert "1.00000" in (runs / "report" / "tables" / "fine.md").read_text()
        assert "documents" not in page.partition("<body>")[2], "a stranger's report speaks of the stranger's runs alone"


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_table_that_cannot_be_made_is_a_line(
    text: str, theirs: Path, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("my_own_tables", None)
    (theirs / "table" / "mine.yaml").write_text(text)
    (theirs / "table" / "right.yaml").write_text("_target_: my_own_tables.fine\n")
    assert main(["--config-dir", str(theirs), str(runs)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"reports: table mine ({theirs}/table/mine.yaml): ")
    assert BROKEN[text] in line
    page = (runs / "report" / "index.html").read_text()
    assert "Tables that could not be made" in page
    assert "fine: of each run" in page


def test_without_their_folder_only_our_own_targets_are_imported(theirs: Path) -> None:
    foreign = theirs / "table" / "mine.yaml"
    foreign.write_text("_target_: nobodys_tables.fine\n")
    with pytest.raises(Unusable, match="a table of your own is a file in a --config-dir"):
        load(foreign, GENERAL)  # an import would be another line: the folder is not on sys.path


def test_a_folder_without_tables_changes_nothing_and_one_that_is_not_there_is_named(
    theirs: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (theirs / "table").rmdir()
    assert main(["--config-dir", str(theirs), str(runs)]) == 0
    assert main(["--config-dir", str(theirs / "no"), str(runs)]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_what_a_table_is_made_of_is_quick_to_import(theirs: Path) -> None:
    heavy = ("jinja2", "matplotlib", "numpy", "scipy", "torch", "yaml")
    code = "import sys; from optimeter.reports import Cell, Table, number, percent; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=theirs, env={"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True
    )
    assert not {*heavy} & {*done.stdout.split()}, done.stderr
