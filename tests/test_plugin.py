"""A user's own optimizer and workload, from a folder of theirs."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import PROJECT, Ran
from tests.test_bench import yaml

Bench = Callable[..., Ran]
PLUGIN = PROJECT / "examples" / "plugin"
TREE = ("bench.py", "conf", "measure", "optimizers", "reports", "workloads")
MY_OPT = """
import torch


class SignDescent(torch.optim.Optimizer):
    def __init__(self, params, lr, power=1.0):
        super().__init__(params, {"lr": lr, "power": power})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad.sign() * p.grad.abs() ** (group["power"] - 1)
"""
MY_WORK = """
import torch
from optimeter.workloads import Workload


class Bowl(Workload):
    def __init__(self, width=4, **schedule):
        super().__init__(**schedule)
        self.width = width

    def model(self):
        return torch.nn.Linear(self.width, 1, bias=False)

    def batches(self, split, seed):
        batch = torch.eye(self.width)
        return [batch] if split == "held_out" else iter(lambda: batch, None)

    def loss(self, model, batch):
        return model(batch).square().mean()
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder outside the project with an optimizer, a workload, and a YAML for each."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "my_opt.py").write_text(MY_OPT)
    (folder / "my_work.py").write_text(MY_WORK)
    yaml(folder, "optimizer", "sign", "my_opt.SignDescent", lr=0.01, power=1.0)
    yaml(folder, "workload", "bowl", "my_work.Bowl", width=3, steps=50, eval_every=10, target=0.001)
    return folder


def test_config_dir_runs_both_from_anywhere(bench: Bench, theirs: Path) -> None:
    """Show 10."""
    ran = bench("--config-dir", str(theirs), "optimizer=sign", "workload=bowl", "workload.width=5")
    assert ran.returncode == 0, ran.stderr
    (result,) = ran.records
    assert result["quality"]["final_loss"] < result["quality"]["first_loss"]
    assert result["parameters"]["count"] == 5
    assert result["optimizer_target"] == "my_opt.SignDescent"


@pytest.mark.parametrize("pattern", ["[si*,torch_adamw_f*]", pytest.param("*", marks=pytest.mark.thorough)])
def test_a_glob_includes_theirs(bench: Bench, theirs: Path, pattern: str) -> None:
    ran = bench("--config-dir", str(theirs), "-m", "optimizer=glob([sign,adamw,any])", "workload=glob(bowl)", "steps=3")
    assert ran.statuses == ["ok", "ok"], ran.stderr
    assert {record["optimizer"] for record in ran.records} == {"sign", "adamw"}
    sweep = ("-m", "dry=true", f"optimizer=glob({pattern})", "workload=bowl", "steps=3")
    everything = bench("--config-dir", str(theirs), *sweep)
    assert "sign on bowl" in everything.stdout
    assert "torch_adamw_fused on bowl" in everything.stdout


def test_any_needs_no_file(bench: Bench, theirs: Path) -> None:
    ran = bench("optimizer=any", "optimizer._target_=torch.optim.RAdam", "workload=toy", "steps=5")
    assert ran.statuses == ["ok"]
    assert ran.records[0]["optimizer"] == "torch.optim.RAdam"
    ran = bench(
        *("optimizer=any", "optimizer._target_=my_opt.SignDescent", "optimizer.lr=0.1", "+optimizer.power=2"),
        *("workload=any", "workload._target_=my_work.Bowl", "steps=5"),
        folder=theirs,
    )
    assert ran.statuses == ["ok"], ran.stderr
    assert ran.records[0]["workload"] == "my_work.Bowl"


def test_a_users_folders_do_not_shadow_ours(bench: Bench, tmp_path: Path) -> None:
    for name in ("conf", "measure", "optimizers", "workloads", "reports", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong one')\n")
    ran = bench("optimizer=adamw", "workload=toy", "steps=3")
    assert ran.statuses == ["ok"], ran.stderr


def test_a_package_called_as_a_room_of_ours_is_the_users(bench: Bench, tmp_path: Path) -> None:
    for name, code in (("optimizers", MY_OPT), ("workloads", MY_WORK), ("optimeter", "raise ImportError('not ours')")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    theirs = ("optimizer=any", "optimizer._target_=optimizers.SignDescent", "optimizer.lr=0.1")
    ran = bench(*theirs, "workload=any", "workload._target_=workloads.Bowl", "steps=5")
    assert ran.statuses == ["ok"], ran.stderr
    assert ran.records[0]["optimizer_target"] == "optimizers.SignDescent"


MY_MEASURE = """
from optimeter.measure.methods import Loop, Measure
from optimeter.measure.records.schema import Findings


class LossRange(Measure):
    optimizers = ("rival",)

    def __init__(self, batches=3):
        if batches < 2:
            raise ValueError(f"measure.batches must be at least 2, not {batches}")
        self.batches = batches

    def run(self, trial):
        batches = trial.workload.batches("train", trial.settings.seed)
        loop = Loop(trial.workload, trial.optimizer, trial.settings, trial.device)
        losses = [float(loop.gradients([next(iter(batches))])) for _ in range(self.batches)]
        rival = trial.others["rival"]
        return Findings(status="ok", extra={"losses": losses, "rival": rival.name, "class": rival.cls.__name__})

    def line(self, findings):
        return f"{len(findings.extra['losses'])} losses, beside {findings.extra['rival']}"
"""


def test_a_measure_of_ones_own(bench: Bench, theirs: Path) -> None:
    """It is composed with its further optimizer, recorded with what every measure has, and edits make another run."""
    (theirs / "my_measure.py").write_text(MY_MEASURE)
    yaml(theirs, "measure", "losses", "my_measure.LossRange", batches=3, optimizers={"rival": "${baseline}"})
    run = ("--config-dir", str(theirs), "measure=losses", "workload=bowl", "optimizer=sign", "baseline=adam")
    ran = bench(*run)
    assert ran.statuses == ["ok"], ran.stderr
    assert "3 losses, beside adam" in ran.stdout
    (result,) = ran.records
    assert result["measure"] == "losses"
    assert result["extra"]["class"] == "Adam"
    assert result["summary"] == "3 losses, beside adam"
    assert result["gpu"] is None
    assert "gpu" in result["missing"]
    again = bench(*run)
    assert again.statuses == ["kept"]
    assert "3 losses, beside adam" in again.stdout
    assert bench(*run[:-1], "baseline=lion").statuses == ["ok"]
    (theirs / "my_measure.py").write_text(MY_MEASURE + "\n# edited\n")
    assert bench(*run).statuses == ["ok"]
    assert len(bench(*run).records) == 3
    told = MY_MEASURE.replace("        rival =", "        trial.progress('hello')\n        rival =")
    (theirs / "my_measure.py").write_text(told)
    ran = bench(*run)
    assert ran.statuses == ["error"], "and no traceback in the command"
    assert "progress takes (steps done" in ran.stdout
    refused = bench(*run, "measure.batches=1")
    assert refused.stderr == "bench.py: measure.batches must be at least 2, not 1\n"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a module of the example, for one test."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    there = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - there:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(PLUGIN)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"steps": "x"}, "measure.steps must be a whole number of at least 1, not 'x'"),
        ({"steps": 2.5}, "measure.steps must be a whole number of at least 1, not 2.5"),
        ({"steps": 0}, "measure.steps must be a whole number of at least 1, not 0"),
        ({"warm_up": -1}, "measure.warm_up must be a whole number of at least 0, not -1"),
    ],
    ids=str,
)
def test_the_examples_measure_refuses_what_is_no_count(
    plugin: Callable[[str], Any], argument: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        plugin("energy").Energy(**argument)


def counter(folder: Path, microjoules: int) -> None:
    """What RAPL shows of a package."""
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")


def test_a_counter_of_energy_may_start_again_meanwhile(
    plugin: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meters = plugin("meters")
    monkeypatch.setattr(meters, "POWERCAP", tmp_path)
    cpu = torch.device("cpu")
    with pytest.raises(meters.NoMeter, match=r"^RAPL: .* has no intel-rapl"):
        meters.meter_for(cpu)
    first, second, part = (tmp_path / f"intel-rapl:{name}" for name in ("0", "1", "0:0"))
    for folder, begin in ((first, 262_142_328_850), (second, 5_000_000), (part, 0)):
        counter(folder, begin)
    meter = meters.meter_for(cpu)
    counter(first, 1_999_999)  # a joule to the end of its range, a step to 0, and two more but one
    counter(second, 9_000_000)
    counter(part, 1_000_000_000)  # a part of the first, which counts it too
    assert meter.joules() == pytest.approx(3 + 4, abs=1e-9)
    with pytest.raises(meters.NoMeter, match="no counter of energy is known for meta"):
        meters.meter_for(torch.device("meta"))


def test_only_the_example_speaks_of_energy() -> None:
    for name in (*TREE, "README.md", "CONTRIBUTING.md"):
        path = PROJECT / name
        texts = [path] if path.is_file() else [*path.rglob("*.py"), *path.rglob("*.yaml")]
        for text in texts:
            assert "energy" not in text.read_text().lower(), text
