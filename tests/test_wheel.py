"""The package as others get it: a wheel built from the sdist, its core dependencies and no more, another folder."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email.parser import Parser
from importlib import import_module
from importlib.metadata import files, requires
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import PROJECT, Ran
from tests.twice import loaded_twice

Bench = Callable[..., Ran]
ROOMS = ("conf", "measure", "optimizers", "reports", "workloads")
HEAVY = (
    *("bitsandbytes", "diffusers", "hydra", "jinja2", "matplotlib", "omegaconf", "pandas", "peft", "pyarrow", "rich"),
    *("scipy", "sklearn", "torch._dynamo", "torch._inductor", "transformers"),
)
PLUGIN = PROJECT / "examples" / "plugin"
PUBLIC = "from optimeter import OptimizerMonitor, load, plan, optimizers"


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and a folder that holds other packages of our rooms' names."""

    wheel: Path
    sdist: Path
    binaries: Path
    folder: Path

    def run(self, command: str, *arguments: str, **environment: str) -> str:
        """What a command of the environment prints, from the folder."""
        variables = {**os.environ, **environment}
        done = subprocess.run(
            [self.binaries / command, *arguments],
            cwd=self.folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment that borrows from this one what the wheel asks for, and nothing else."""
    base = tmp_path_factory.mktemp("wheel")
    dist, environment, folder = base / "dist", base / "environment", base / "folder"
    quiet = {"check": True, "capture_output": True}
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(PROJECT)]
    subprocess.run(build, **quiet)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], **quiet)
    python = str(environment / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--no-deps"]
    subprocess.run([*pip, str(wheel)], **quiet)
    site = next((environment / "lib").glob("python3*/site-packages"))
    for name in needed(wheel):
        borrow(name, site)
    for name in ROOMS:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise ImportError('the wrong {name}')\n")
    (folder / "torch.py").write_text("raise ImportError('the wrong torch')\n")
    return Installed(wheel, sdist, environment / "bin", folder)


def needed(wheel: Path) -> set[str]:
    """The distributions that the wheel's core asks for, and those that these ask for."""
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        asked = Parser().parsestr(file.read(metadata).decode()).get_all("Requires-Dist", [])
    found: set[str] = set()
    while asked:
        requirement = Requirement(asked.pop())
        if requirement.name in found or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(requirement.name)
        asked += requires(requirement.name) or []
    return found


def borrow(name: str, site: Path) -> None:
    """Link what a distribution has in this environment's site-packages into another's."""
    for file in files(name) or []:
        top = file.parts[0]
        source = Path(str(file.locate())).parents[len(file.parts) - 2] if len(file.parts) > 1 else file.locate()
        if top not in ("..", "__pycache__") and not (site / top).exists():
            (site / top).symlink_to(source)


def files_in_the_rooms() -> set[str]:
    """Every file of the rooms, from the top of the repository."""
    rooms = [path for room in ROOMS for path in (PROJECT / room).rglob("*") if path.is_file()]
    return {path.relative_to(PROJECT).as_posix() for path in rooms if "__pycache__" not in path.parts}


def test_the_wheel_has_one_top_level_name_and_is_whole(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = set(wheel.namelist())
    ours = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in ours} == {"optimeter"}
    assert ours == {f"optimeter/{name}" for name in files_in_the_rooms() | {"__init__.py", "bench.py", "py.typed"}}


def test_the_sdist_has_files_in_place_of_links(installed: Installed) -> None:
    with tarfile.open(installed.sdist) as sdist:
        members = sdist.getmembers()
    assert not [member.name for member in members if not member.isfile()]
    assert len({member.name for member in members}) == len(members)


def test_it_is_imported_beside_packages_called_as_our_rooms_and_a_file_torch(installed: Installed) -> None:
    seen = installed.run(
        "python", "-c", f"{PUBLIC}; import optimeter, torch; print(optimeter.__file__, torch.__path__)"
    )
    assert str(installed.binaries.parent) in seen
    assert str(installed.folder) not in seen


def test_a_script_beside_a_file_torch_is_started_from_anywhere(installed: Installed) -> None:
    script = installed.folder / "scripts" / "script.py"
    script.parent.mkdir()
    (script.parent / "torch.py").write_text("raise ImportError('the wrong torch')\n")
    script.write_text(f"{PUBLIC}; print(OptimizerMonitor.__name__)\n")
    assert installed.run("python", str(script)) == "OptimizerMonitor\n"


def test_the_command_and_a_report_work_there(installed: Installed) -> None:
    swept = installed.run("optimeter", "-m", "optimizer=adamw", "workload=toy,mlp", "steps=5")
    assert swept.split().count("ok") == 2
    assert "index.html" in installed.run("python", "-m", "optimeter.reports", "runs/default")
    counted = "from optimeter import load; print(len(load('runs/default')))"
    assert installed.run("python", "-c", counted).strip() == "2"


def test_the_example_of_a_plug_in_works_there(installed: Installed, tmp_path: Path) -> None:
    """Its optimizer, workload, measure and table, none of which the package knows."""
    plugin = tmp_path / "plugin"
    shutil.copytree(PLUGIN, plugin, ignore=shutil.ignore_patterns("__pycache__"))
    common = ("--config-dir", str(plugin), "optimizer=sm3", "workload=spirals", "name=plugin")
    assert installed.run("optimeter", *common).startswith("ok")
    assert installed.run("optimeter", *common, "measure=energy", "measure.steps=3").startswith("ok")
    records = [json.loads(path.read_text()) for path in installed.folder.glob("runs/plugin/*/result.json")]
    trained, energy = sorted(records, key=lambda record: record["measure"], reverse=True)
    assert trained["memory"]["by_role"] == {"second_moment": 4 * (66 + 64 + 128 + 64 + 66 + 2)}
    assert trained["quality"]["score"] > 0.9
    found = energy["extra"]
    assert (found["joules_per_step"] is None) == ("extra.joules_per_step" in energy["missing"])
    assert found["seconds_per_step"] > 0
    installed.run("python", "-m", "optimeter.reports", "--config-dir", str(plugin), "runs/plugin")
    table = (installed.folder / "runs/plugin/report/tables/energy.md").read_text()
    assert "| spirals | sm3 | cpu |" in table


def test_nothing_of_ours_names_the_plug_in() -> None:
    names = {"SM3", "Spirals", "energy_table", "meters", "sm3", "spirals"}
    for path in (PROJECT / name for name in files_in_the_rooms() if name.endswith((".py", ".yaml"))):
        assert not names & set(re.findall(r"\w+", path.read_text())), path


def test_workloads_without_their_packages_are_unsupported_and_say_what_to_install(installed: Installed) -> None:
    sweep = ("-m", "workload=t5,sd_lora,toy", "optimizer=adamw,hf_adafactor", "name=finetune", "steps=3")
    ended = {tuple(line.split()[1:4]): line for line in installed.run("optimeter", *sweep).splitlines()}
    for workload, cls in (("t5", "T5"), ("sd_lora", "SDLora")):
        line = ended["adamw", "on", f"{workload},"]
        assert line.startswith("unsupported")
        assert f"{cls} needs " in line
        assert "pip install 'optimeter[finetune]'" in line
    assert "SDLora needs diffusers, peft, transformers" in ended["adamw", "on", "sd_lora,"]
    assert ended["adamw", "on", "toy,"].startswith("ok")
    rival = ended["hf_adafactor", "on", "toy,"]
    assert rival.startswith("unsupported")
    assert "pip install transformers" in rival


def test_the_import_brings_nothing_heavy(installed: Installed) -> None:
    loaded = "import json, sys; import torch; before = set(sys.modules)"
    new = "print(json.dumps(sorted(set(sys.modules) - before)))"
    modules = json.loads(installed.run("python", "-P", "-c", f"{loaded}; {PUBLIC}; {new}"))
    assert "optimeter.measure.monitor.monitor" in modules
    assert not [name for name in modules if name.startswith(tuple(f"{heavy}." for heavy in HEAVY)) or name in HEAVY]


def test_records_are_loaded_without_torch(installed: Installed) -> None:
    said = installed.run(
        "python", "-c", "from optimeter import load; load('.'); import sys; print('torch' in sys.modules)"
    )
    assert said.strip() == "False"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    import optimeter

    with pytest.raises(AttributeError, match="no attribute 'Optimiser'"):
        _ = optimeter.Optimiser  # type: ignore[attr-defined]
    assert set(optimeter.__all__) <= set(dir(optimeter))
    for name in optimeter.__all__:
        assert getattr(optimeter, name) is not None


TWICE = Path(sys.modules[loaded_twice.__module__].__file__ or "").read_text()
# A workload that writes what is loaded twice in the process that trains it; the rest of a run has a sitecustomize.
LOOKS = f"""
import os
import torch
from optimeter.workloads import Toy
{TWICE}

class Looks(Toy):
    def model(self):
        with open(os.environ["SEEN"], "a") as file:
            print("child", loaded_twice(), file=file)
        return super().model()
"""
AT_EXIT = f"""
import atexit
import os
{TWICE}

def tell():
    with open(os.environ["SEEN"], "a") as file:
        print("parent", loaded_twice(), file=file)

atexit.register(tell)
"""


@pytest.fixture
def looking(tmp_path: Path) -> dict[str, str]:
    """Variables that make a run tell which files of ours it loaded twice."""
    (tmp_path / "looks.py").write_text(LOOKS)
    (tmp_path / "sitecustomize.py").write_text(AT_EXIT)
    return {"PYTHONPATH": str(tmp_path), "SEEN": str(tmp_path / "seen")}


LOOKING = ("optimizer=adamw", "workload=toy", "workload._target_=looks.Looks", "steps=3")


def told(seen: str) -> set[str]:
    """What the processes of a run said."""
    return set(Path(seen).read_text().splitlines())


def test_bench_loads_no_file_twice(bench: Bench, looking: dict[str, str]) -> None:
    ran = bench(*LOOKING, environment=looking)
    assert ran.statuses == ["ok"], ran.stderr
    assert told(looking["SEEN"]) == {"child []", "parent []"}


def test_a_report_loads_no_file_twice(looking: dict[str, str]) -> None:
    """In a checkout too, where `python -m reports` finds the package under its short name."""
    command = [sys.executable, "-m", "reports", "compare", "results/h100", "results/h100"]
    subprocess.run(command, cwd=PROJECT, env={**os.environ, **looking}, check=True, capture_output=True)
    assert told(looking["SEEN"]) == {"parent []"}


def test_the_command_loads_no_file_twice(installed: Installed, looking: dict[str, str]) -> None:
    assert installed.run("optimeter", *LOOKING, **looking).startswith("ok")
    assert told(looking["SEEN"]) == {"child []", "parent []"}


def test_a_file_under_two_names_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    path = PROJECT / "measure" / "statistics.py"
    spec = spec_from_file_location("statistics_again", path)
    assert spec
    monkeypatch.setitem(sys.modules, "statistics_again", module_from_spec(spec))
    import_module("optimeter.measure.statistics")
    assert loaded_twice() == [str(path)]
