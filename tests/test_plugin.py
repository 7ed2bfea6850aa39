"""A user's own optimizer and workload, from a folder of theirs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ran
from tests.test_bench import yaml

Bench = Callable[..., Ran]
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


def test_a_glob_includes_theirs(bench: Bench, theirs: Path) -> None:
    ran = bench("--config-dir", str(theirs), "-m", "optimizer=glob([sign,adamw,any])", "workload=glob(bowl)", "steps=3")
    assert ran.statuses == ["ok", "ok"], ran.stderr
    assert {record["optimizer"] for record in ran.records} == {"sign", "adamw"}
    everything = bench("--config-dir", str(theirs), "-m", "dry=true", "optimizer=glob(*)", "workload=bowl", "steps=3")
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
