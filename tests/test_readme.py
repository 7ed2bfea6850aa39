"""The README is executed: its commands run, its code runs, its tables are what the published records say.

`python -m tests.test_readme` rewrites the tables from the records.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from optimeter.measure.jobs.job import Job
from optimeter.measure.records.read import read_records
from optimeter.reports.comparison import comparison
from optimeter.reports.documents.claims import claims
from optimeter.reports.documents.finetuning import adafactor_vs_adam, lora_comparison
from optimeter.reports.documents.layer import layer_memory
from optimeter.reports.documents.relative import relative_memory
from optimeter.reports.documents.sparse import sparse_vs_dense
from optimeter.reports.group import settings_of
from optimeter.reports.look import configured
from optimeter.reports.steps import optimizer_steps
from optimeter.reports.table import Table
from tests.conftest import PROJECT, Ran
from tests.running import in_this_process

README = PROJECT / "README.md"
PUBLISHED = PROJECT / "results" / "cpu-2-cores"
DOCUMENTS = PROJECT / "results" / "cpu-2-cores-documents"
SHOWN: dict[str, tuple[str, ...] | None] = {
    "comparison, mlp": (
        *("optimizer", "steps/s", "optimizer ms", "B/parameter"),
        *("in 8 bits", "final loss", "score", "loss vs baseline"),
    ),
    "optimizer_steps": ("optimizer", "baseline", "on", "verdict", "ratio", "step ms", "baseline ms"),
    "relative_memory": None,
    "layer_memory": ("optimizer", "state MB", "B/parameter", "of Adam's", "in 8 bits", "predicted = walked"),
    "claims": ("claim", "document", "what is claimed", "stated", "measured", "verdict"),
    "adafactor_vs_adam": (
        "optimizer",
        "lr",
        "step ms",
        "steps to target",
        "final loss",
        "state MB",
        "peak MB",
        "peak in",
    ),
    "lora_comparison": (
        *("optimizer", "lr", "final loss", "training s", "state MB", "peak MB", "peak in"),
        "optimizer at most MB",
    ),
    "sparse_vs_dense": (
        *("rows of a table", "dim", "optimizer", "gradients", "step ms", "optimizer ms", "gradient MB", "state MB"),
        "final loss",
    ),
}


def tables() -> dict[str, str]:
    """The README's tables, from the published records."""
    records = read_records(PUBLISHED)
    (mlp,) = (setting for setting in settings_of(records) if setting.label.startswith("mlp tiny"))
    family = [record for record in records if configured(record.result, "workload", "shape") == [1024, 1024]]
    made = [comparison(mlp, 1), optimizer_steps(records), relative_memory(family), layer_memory(records)]
    judged = read_records(DOCUMENTS)
    seeds_and_rates = [one for one in judged if configured(one.result, "eval_every") == 25]  # experiment=lora
    growing = [one for one in judged if configured(one.result, "workload", "dim") == 16]  # experiment=sparse
    made += [claims(judged), adafactor_vs_adam(judged), lora_comparison(seeds_and_rates), sparse_vs_dense(growing)]
    return {name: columns(table, SHOWN[name]) for name, table in zip(SHOWN, made, strict=True)}


def columns(table: Table | None, names: tuple[str, ...] | None) -> str:
    """Some columns of a table, or all, in Markdown, without title and notes."""
    assert table
    names = names or tuple(table.columns)
    chosen = [list(table.columns).index(name) for name in names]
    part = Table(table.name, "", names, [[row[index] for index in chosen] for row in table.rows])
    return part.markdown().split("\n\n", 1)[1].strip()


def with_tables(text: str) -> str:
    """The README with its tables put in place."""
    for name, table in tables().items():
        pattern = rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end of table -->)"
        text, count = re.subn(pattern, lambda found: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL)  # noqa: B023
        assert count == 1, name
    return text


def test_the_tables_are_the_published_records() -> None:
    text = README.read_text()
    assert with_tables(text) == text


@pytest.mark.parametrize("folder", [PUBLISHED, DOCUMENTS], ids=lambda folder: folder.name)
def test_every_published_record_is_whole_and_clean(folder: Path) -> None:
    records = read_records(folder)
    assert len(records) > 50
    for record in records:
        assert record.result.status in ("ok", "diverged", "unsupported"), record.name
        assert record.result.environment.git.dirty is False, record.name
        for file in record.folder.iterdir():
            assert not re.search(r"(?<![\w.~])/(home|root|work|tmp)/", file.read_text()), file
    assert (folder / "report" / "index.html").exists()


def commands() -> list[str]:
    """Every command of the README that starts with python, in code spans and console blocks."""
    text = README.read_text()
    spans = re.findall(r"`(python (?:bench\.py|-m reports) [^`]+)`", text)
    lines = re.findall(r"^\$ (python .+)$", text, re.MULTILINE)
    return list(dict.fromkeys(spans + lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with two sweeps and a user's own optimizer, as the README supposes."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_package.py").write_text("import torch\nclass MyOptimizer(torch.optim.SGD): pass\n")
    (folder / "my_conf" / "optimizer").mkdir(parents=True)
    (mine,) = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    (folder / "my_conf" / "optimizer" / "mine.yaml").write_text(mine)
    for name in ("A", "B", "NAME"):
        ran = in_this_process((f"name={name}", "workload=toy", "steps=3"), folder)
        assert ran.returncode == 0, ran.stderr
    next((folder / "runs" / "NAME").glob("adamw-*")).rename(folder / "runs" / "NAME" / "RUN")
    return folder


def test_there_are_commands() -> None:
    assert len(commands()) >= 12


def is_sweep(command: str) -> bool:
    return "bench.py -m " in command or "experiment=" in command


SWEEPS = [command for command in commands() if is_sweep(command)]
STEPS = [command for command in commands() if "measure=step" in command and not is_sweep(command)]
REPORTS = [command for command in commands() if command.startswith("python -m")]
RUNS = [command for command in commands() if command not in (*SWEEPS, *STEPS, *REPORTS)]


def arguments_of(command: str) -> list[str]:
    """What stands behind `python bench.py`."""
    return shlex.split(command)[2:]


@pytest.mark.parametrize("command", REPORTS, ids=str)
def test_the_report_is_made(command: str, folder: Path) -> None:
    words, environment = shlex.split(command)[1:], {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", RUNS, ids=str)
def test_the_command_runs(command: str, folder: Path, bench: Callable[..., Ran]) -> None:
    whole = "--help" in command or "replay=" in command
    ran = bench(*arguments_of(command), *([] if whole else ["steps=60"]), folder=folder)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("seconds", [["measure.seconds=0.1"], pytest.param([], marks=pytest.mark.thorough)], ids=str)
@pytest.mark.parametrize("command", STEPS, ids=str)
def test_the_step_is_compared(command: str, seconds: list[str], folder: Path, bench: Callable[..., Ran]) -> None:
    ran = bench(*arguments_of(command), *seconds, folder=folder)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("command", SWEEPS, ids=str)
def test_the_sweep_is_composed_and_all_that_it_names_is_there(
    command: str, folder: Path, bench: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is refused is refused before the first run or estimate, at which this ends."""
    jobs: list[Job] = []
    monkeypatch.setattr("optimeter.bench.run_jobs", lambda composed, make: jobs.extend(composed) or [])
    monkeypatch.setattr("optimeter.bench.show", lambda composed: jobs.extend(composed) or 0)
    monkeypatch.setattr("optimeter.bench.exit_code", lambda composed, endings: 0)
    ran = bench(*arguments_of(command), folder=folder)
    assert ran.returncode == 0, ran.stderr
    assert jobs


@pytest.mark.thorough
@pytest.mark.parametrize("command", SWEEPS, ids=str)
def test_the_sweep_is_estimated(command: str, folder: Path, bench: Callable[..., Ran]) -> None:
    ran = bench(*arguments_of(command), *([] if "dry=true" in command else ["dry=true"]), folder=folder)
    assert ran.returncode == 0, ran.stderr
    assert "nothing was run" in ran.stdout
    assert "looking at it ends the process" not in ran.stdout


def test_the_loop_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert float(capsys.readouterr().out) == pytest.approx(8.0, abs=0.01)
    assert (tmp_path / "trends.png").exists()


def test_make_knows_its_targets() -> None:
    for target in re.findall(r"^\$ make (\w+)", README.read_text(), re.MULTILINE):
        subprocess.run(["make", "-n", target], cwd=PROJECT, check=True, capture_output=True)
    quiet = ["make", "--no-print-directory", "help"]
    help_text = subprocess.run(quiet, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    assert {line.split()[0] for line in help_text.splitlines()} == {
        "help",
        "bench",
        "documents",
        "test",
        "thorough",
        "check",
        "report",
        "clean",
    }


def test_the_tree_is_the_trees() -> None:
    (tree,) = re.findall(r"## The tree\n\n```\n(.*?)```", README.read_text(), re.DOTALL)
    named = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    folders = {path.name for path in PROJECT.iterdir() if (path / "__init__.py").exists()}
    assert named == folders | {"bench.py", "examples", "results"}


def test_links_lead_somewhere() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (PROJECT / path).exists(), path


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
