"""The command, end to end, as a user types it: runs, sweeps, faults, resumption, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from optimeter.bench import user_folders
from optimeter.measure.devices import names as device_names
from optimeter.measure.records.fields import names
from optimeter.measure.records.read import read_records
from optimeter.measure.records.schema import SCHEMA, Memory, Result, Times
from tests.conftest import PROJECT, Ran

Bench = Callable[..., Ran]

FAULTS = """
import os, subprocess, sys, time
import torch


class Raises(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("this optimizer raises")


class Aborts(torch.optim.SGD):
    def step(self, closure=None):
        os.abort()


class Leaves(torch.optim.SGD):
    def step(self, closure=None):
        os._exit(0)


class Hangs(torch.optim.SGD):
    def __init__(self, params, lr, pids=""):
        super().__init__(params, lr)
        self.pids = pids

    def step(self, closure=None):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(self.pids, "w").write(f"{os.getpid()} {child.pid}")
        while True:
            time.sleep(1)


class Spoils(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(torch.nan)


class AbortsWhenImported(torch.optim.SGD):
    pass
"""


def yaml(folder: Path, group: str, name: str, cls: str, **arguments: Any) -> None:
    path = folder / group / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = arguments.pop("about", None)
    lines = [f"_target_: {cls}", "_convert_: all", *(["_partial_: true"] if group == "optimizer" else [])]
    lines += [f"{key}: {json.dumps(value)}" for key, value in arguments.items()]
    lines += [f"about: {json.dumps(about)}"] if about else []
    path.write_text("\n".join(lines) + "\n")


def test_one_run_has_the_whole_schema(bench: Bench, tmp_path: Path) -> None:
    ran = bench("optimizer=adamw", "workload=mlp", "steps=30", "seed=3")
    assert ran.returncode == 0, ran.stderr
    (result,) = ran.records
    assert set(result) == set(names(Result))
    assert set(result["memory"]) == set(names(Memory))
    assert set(result["time"]) == set(names(Times))
    assert result["schema"] == SCHEMA
    assert (result["status"], result["seed"], result["steps"], result["size"]) == ("ok", 3, 30, "tiny")
    assert result["optimizer_target"] == "optimeter.optimizers.AdamW"
    assert result["command"] == "python bench.py optimizer=adamw workload=mlp steps=30 seed=3"
    assert result["memory"]["predicted_state_bytes"] == result["memory"]["state_bytes"]
    assert result["environment"]["git"].get("commit") or result["environment"]["git"]["reason"]
    (folder,) = (tmp_path / "runs/default").glob("adamw-mlp-*")
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "log.txt", "result.json", "steps.jsonl"]
    lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert set(lines[0]) >= {"seconds", "loss", "lr", "gradient", "weight_norm", "update_norm", "optimizer_seconds"}
    assert ran.stdout.split()[0] == "ok"
    assert str(folder.relative_to(tmp_path)) in ran.stdout


def test_a_run_whose_place_is_taken_is_an_error_and_what_is_there_stays(bench: Bench, tmp_path: Path) -> None:
    bench("optimizer=adamw", "workload=toy", "steps=3")
    (folder,) = (tmp_path / "runs/default").glob("adamw-toy-*")
    (folder / "result.json").write_text('{"schema": 99}')
    for again in ((), ("rerun=true",)):
        ran = bench("optimizer=adamw", "workload=toy", "steps=3", *again)
        assert ran.returncode == 2
        assert "schema is 99: a newer version made it" in ran.stdout
        assert (folder / "result.json").read_text() == '{"schema": 99}'


def test_the_record_names_neither_machine_nor_user(bench: Bench, tmp_path: Path) -> None:
    ran = bench("optimizer=adamw", "workload=toy", "steps=3", f"runs_dir={tmp_path}/runs")
    text = json.dumps(ran.records)
    for secret in (str(tmp_path), os.uname().nodename, str(Path.home())):
        assert len(secret) < 3 or secret not in text


def test_the_documents_toy_trace(bench: Bench, tmp_path: Path) -> None:
    """Show 2: the true values, ours and torch's equal."""
    for name in ("adam", "torch_adam"):
        ran = bench(f"optimizer={name}", "workload=toy", "steps=100", "optimizer.lr=0.1")
        assert ran.returncode == 0
    traces = {}
    for record in read_records(tmp_path / "runs"):
        traces[record.result.optimizer] = {line["step"]: line["extra"] for line in record.steps()}
    for epoch, x, f in (
        (0, "2.9000", "145.90"),
        (10, "1.9553", "39.04"),
        (50, "0.4251", "2.26"),
        (90, "0.2627", "2.06"),
    ):
        extra = traces["adam"][epoch + 1]
        assert (f"{extra['x']:.4f}", f"{extra['f']:.2f}") == (x, f)
    for step, extra in traces["adam"].items():
        assert extra["x"] == pytest.approx(traces["torch_adam"][step]["x"], rel=1e-6)


def test_faults_in_a_sweep(bench: Bench, tmp_path: Path) -> None:
    """Show 4: each fault becomes its status, the sweep goes on, nothing is left behind, the report lists them."""
    (tmp_path / "faults.py").write_text(FAULTS)
    conf = tmp_path / "my_conf"
    pids = tmp_path / "pids"
    for name in ("Raises", "Aborts", "Leaves", "Spoils"):
        yaml(conf, "optimizer", name.lower(), f"faults.{name}", lr=0.01)
    yaml(conf, "optimizer", "hangs", "faults.Hangs", lr=0.01, pids=str(pids))
    yaml(conf, "optimizer", "missing", "nowhere.Opt", lr=0.01, about={"package": "not-installed"})
    sweep = ("--config-dir", str(conf), "-m", "workload=toy", "steps=20", "limit_seconds=8")
    ran = bench(*sweep, "optimizer=raises,aborts,leaves,hangs,spoils,missing,adamw")
    assert ran.returncode == 2, ran.stderr
    assert ran.statuses == ["error", "crashed", "crashed", "timeout", "diverged", "unsupported", "ok"]
    reasons = {record["optimizer"]: record["reason"] for record in ran.records}
    assert reasons["raises"] == "RuntimeError: this optimizer raises"
    log = next(ran.folder.glob("runs/*/raises-*/log.txt")).read_text()
    assert 'File "optimeter/measure/' in log, "where it raised, without this machine's folders"
    assert "SIGABRT" in reasons["aborts"]
    assert "exit code 0" in reasons["leaves"]
    assert "time limit" in reasons["hangs"]
    assert "not finite" in reasons["spoils"]
    assert reasons["missing"] == "pip install not-installed"
    time.sleep(0.5)
    for pid in map(int, pids.read_text().split()):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    report = subprocess.run(
        [sys.executable, "-m", "optimeter.reports", "runs/default"], cwd=tmp_path, env=paths(), check=True
    )
    assert report.returncode == 0
    page = (tmp_path / "runs/default/report/index.html").read_text()
    assert all(reason in page for reason in ("this optimizer raises", "SIGABRT", "pip install not-installed"))
    again = bench(*sweep, "optimizer=spoils,missing,adamw")
    assert again.statuses == ["kept"] * 3
    assert again.returncode == 0


def paths() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT)}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.glob("runs/*/*/*")) if ".part" not in str(path)}


def test_a_killed_sweep_goes_on_where_it_was(bench: Bench, tmp_path: Path) -> None:
    """Show 5: finished records stay byte for byte, the rest is made, no child outlives the parent."""
    sweep = ["-m", "workload=mlp", "optimizer=adamw,adam", "seed=0,1", "steps=1000"]
    command = [sys.executable, str(PROJECT / "bench.py"), *sweep]
    parent = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not list(tmp_path.glob("runs/*/*/result.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    family = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    before = snapshot(tmp_path)
    assert 1 <= len(list(tmp_path.glob("runs/*/*/result.json"))) < 4
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive
    ran = bench(*sweep)
    assert ran.returncode == 0
    assert ran.statuses.count("kept") >= 1
    assert len(ran.records) == 4
    after = snapshot(tmp_path)
    assert {path: after[path] for path in before} == before
    assert not list(tmp_path.glob("runs/*/*.part"))
    assert bench(*sweep).statuses == ["kept"] * 4
    assert snapshot(tmp_path) == after


def test_ctrl_c_leaves_whole_records(bench: Bench, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children of a background job would ignore it
    command = [sys.executable, str(PROJECT / "bench.py"), "-m", "workload=mlp", "seed=0,1,2,3", "steps=1000"]
    parent = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 400
    while not list(tmp_path.glob("runs/*/*/result.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    parent.send_signal(signal.SIGINT)
    output, _ = parent.communicate(timeout=60)
    assert parent.returncode == 130
    statuses = [line.split()[0] for line in output.splitlines()]
    assert statuses.count("interrupted") == 1
    assert set(statuses) == {"ok", "interrupted"}
    for path in tmp_path.glob("runs/*/*/result.json"):
        json.loads(path.read_text())


def test_two_parents_share_a_folder(bench: Bench, tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT / "bench.py"), "-m", "workload=toy", "steps=50", "seed=range(4)"]
    parents = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    outputs = [parent.communicate(timeout=120)[0] for parent in parents]
    assert [parent.returncode for parent in parents] == [0, 0]
    made = [[line.split()[0] for line in output.splitlines()] for output in outputs]
    assert [len(statuses) for statuses in made] == [4, 4]
    for a, b in zip(*made, strict=True):
        assert {a, b} == {"ok", "kept"}, "each run is made once"
    assert len(list(tmp_path.glob("runs/default/*/result.json"))) == 4


def test_an_edited_optimizer_is_run_again(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "edited.py").write_text("import torch\nclass Mine(torch.optim.SGD): pass\n")
    run = ("optimizer=any", "optimizer._target_=edited.Mine", "optimizer.lr=0.01", "workload=toy", "steps=5")
    assert bench(*run).statuses == ["ok"]
    assert bench(*run).statuses == ["kept"]
    (tmp_path / "edited.py").write_text("import torch\nclass Mine(torch.optim.SGD):\n    'edited'\n")
    assert bench(*run).statuses == ["ok"]
    assert bench(*run, "rerun=true").statuses == ["ok"]
    assert len(list(tmp_path.glob("runs/default/edited.Mine-toy-*"))) == 2


def test_a_record_can_be_replayed(bench: Bench, tmp_path: Path) -> None:
    first = bench("optimizer=adam", "workload=toy", "steps=7", "seed=5", "optimizer.lr=0.2", "name=first")
    (folder,) = (tmp_path / "runs/first").glob("adam-*")
    again = bench(f"replay={folder}", "name=again")
    assert again.statuses == ["ok"]
    original, replayed = (next(r for r in again.records if r["name"] == name) for name in ("first", "again"))
    assert replayed["run"] == original["run"]
    assert replayed["quality"]["final_loss"] == original["quality"]["final_loss"]
    assert first.returncode == 0
    other = bench(f"replay={folder}", "seed=6", "name=other")
    assert other.returncode == 1
    assert "seed=6: replay makes a run again as it was" in other.stderr
    config = (folder / "config.yaml").read_text()
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.yaml").write_text(config.replace("optimeter.optimizers.Adam", "my_module.Adam"))
    refused = bench(f"replay={bad}", "name=bad")
    assert refused.returncode == 1
    assert "a replayed configuration may only name" in refused.stderr


def test_a_configuration_of_schema_1_can_be_replayed(bench: Bench, tmp_path: Path) -> None:
    old = {
        "name": "old", "seed": 3, "device": "cpu", "dtype": "float32", "steps": 4, "schedule": "constant",
        "warmup_steps": 0, "clip_norm": None, "accumulate": 1, "eval_every": 2, "record_every": 1,
        "limit_seconds": None, "baseline": "torch_sgd",
        "optimizer": {"_target_": "optimizers.Adam", "_partial_": True, "_convert_": "all", "lr": 0.1,
                      "about": {"reference": "arXiv:1412.6980", "coupled": False}},
        "workload": {"_target_": "workloads.Toy", "_convert_": "all", "steps": 4, "eval_every": 2, "target": 2.1},
        "measure": {"kind": "step", "shapes": None, "seconds": 0.1, "precision": 0.01, "delta": 0.05,
                    "block_seconds": 0.001, "baseline": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}},
        "choices": {"optimizer": "adam", "workload": "toy"},
    }  # fmt: skip
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text(json.dumps(old))
    ran = bench("replay=old", "name=again")
    assert ran.statuses == ["ok"], ran.stderr
    assert "adam against torch_sgd on 1" in ran.stdout
    (result,) = ran.records
    assert (result["measure"], result["optimizer_target"]) == ("step", "optimeter.optimizers.Adam")


REFUSED = [
    (["optimizer=hf/adamw_bnb_8bits"], "no such optimizer; did you mean hf/adamw_bnb_8bit?"),
    (["name=report"], "name=report is where a report goes"),
    (["workload=mlp", "workload.batch=1500"], "workload.batch must be from 1 to 1437"),
    (["optimizer=adamm"], "optimizer=adamm: no such optimizer; did you mean adam?"),
    (["optimizer.lrr=1"], "optimizer.lrr: no such key; did you mean optimizer.lr?"),
    (["+optimizer.lrr=1"], "optimizer.lrr: AdamW takes no such argument; did you mean lr?"),
    (["optimizer.lr=-1"], "optimizer.lr must be a number of at least 0, not -1"),
    (["steps=0"], "steps must be a whole number of at least 1, not 0"),
    (["device=tpu"], "device=tpu: unknown device 'tpu'; there are " + ", ".join(device_names())),
    (["optimizer._target_=os.system"], "not a subclass of torch.optim.Optimizer"),
    (["optimizer._target_=torch.load"], "not a subclass of torch.optim.Optimizer"),
    (["optimizer._target_=optimizers.AdamW"], "there is no module optimizers; ours is optimeter.optimizers.AdamW"),
    (["workload._target_=workloads.MLP"], "there is no module workloads; ours is optimeter.workloads.MLP"),
    (["measure.sample_every=0"], "measure.sample_every must be auto or a whole number of at least 1, not 0"),
    (["measure=step", "baseline=adamm"], "baseline: optimizer=adamm: no such optimizer; did you mean adam?"),
    (["measure._target_=os.path.join"], "is not a measure: not a subclass of optimeter.measure.methods.base.Measure"),
    (["+measure.more=1"], "measure.more: Train takes no such argument"),
    (["name=../x"], "name='../x': no slash"),
    (["experiment=tur"], "experiment=tur: no such experiment; did you mean tour?"),
    (["workload.size=huge"], "workload.size must be one of tiny, small, base, large"),
    (["-m", "seed=0,1", "optimizer.lr=0.1,-1"], "optimizer.lr must be a number of at least 0, not -1"),
    (["optimizer=any"], "optimizer._target_ must be given"),
    (["--config-dir=nowhere"], "not found"),
    (["optimizer.betas=[0.9"], "quote a value"),
    (["optimizer=adamw", "-m", "workload=toy"], "unrecognized arguments: workload=toy; flags such as -m stand before"),
    (["+optimizer.about=[closure]"], "optimizer.about must be keys with values, not ['closure']"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_bad_input_is_one_line_and_writes_nothing(
    bench: Bench, tmp_path: Path, arguments: list[str], words: str
) -> None:
    """Show 11."""
    ran = bench(*arguments)
    assert ran.returncode == 1
    assert words in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
@pytest.mark.parametrize("arguments", [["device=cuda"], ["-m", "device=cpu,cuda", "workload=toy", "steps=2"]], ids=str)
def test_cuda_without_a_device_is_refused(bench: Bench, tmp_path: Path, arguments: list[str]) -> None:
    ran = bench(*arguments)
    assert ran.returncode == 1
    assert ran.stderr == "bench.py: device=cuda: torch sees no CUDA device here; use device=cpu\n"
    assert not list(tmp_path.iterdir())


def test_an_optimizer_that_ends_the_process_when_imported_is_a_crash(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "bomb.py").write_text("import os\nos.abort()\n")
    yaml(tmp_path / "conf", "optimizer", "bomb", "bomb.Opt", lr=0.1)
    ran = bench("--config-dir", str(tmp_path / "conf"), "-m", "optimizer=bomb,adam", "workload=toy", "steps=3")
    assert ran.statuses == ["crashed", "ok"]
    assert ran.returncode == 2


def test_dry_lists_and_writes_nothing(bench: Bench, tmp_path: Path) -> None:
    ran = bench("-m", "dry=true", "workload=mlp", "optimizer=adamw,sparse_adam,bnb_adamw8bit")
    assert ran.returncode == 0
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("would run")
    assert "0.07684 parameters, 0.07684 gradients, 0.1537 state" in lines[0]
    assert lines[1].startswith("unsupported")
    assert "3 runs" in lines[3]
    assert not list(tmp_path.iterdir())


def test_dry_refuses_what_a_run_would(bench: Bench) -> None:
    ran = bench("dry=true", "measure=step", "measure.optimizers=null")
    assert ran.returncode == 1
    assert ran.stderr == "bench.py: measure.optimizers.baseline must be given: Step needs one, by its YAML's name\n"


def test_help_is_quick_to_read_and_complete(bench: Bench) -> None:
    ran = bench("--help")
    assert ran.returncode == 0
    for words in (
        "optimizer=any optimizer._target_=",
        "experiment:",
        "bnb_adamw8bit",
        "workload: any, embedding",
        "seed: 0",
    ):
        assert words in ran.stdout


def test_a_swept_any_is_passed_over(bench: Bench) -> None:
    ran = bench("-m", "optimizer=glob(a*,exclude=[adafactor*,automagic*,*8bit])", "workload=toy", "steps=2")
    assert ran.statuses == ["ok", "ok"]
    assert "passed over" in ran.stderr


def test_predicting_does_not_change_what_is_run(bench: Bench) -> None:
    """torchao keeps its code maps for good at first use, also those that fake tensors would make up."""
    ran = bench("-m", "optimizer=torchao_adamw8bit,adamw8bit", "workload=mlp", "steps=60")
    assert ran.statuses == ["ok", "ok"]
    theirs, ours = (record["quality"]["final_loss"] for record in ran.records[::-1])
    assert theirs == pytest.approx(ours, rel=0.02)


def test_other_names_for_the_same(bench: Bench) -> None:
    ran = bench("-m", "optimizer=hf/adamw_torch,torch_adamw", "workload=toy", "steps=5")
    assert ran.statuses == ["ok", "ok"]
    assert {record["optimizer"] for record in ran.records} == {"hf/adamw_torch", "torch_adamw"}
    assert len({record["quality"]["final_loss"] for record in ran.records}) == 1


@pytest.mark.parametrize("name", ["<script>alert(1)</script>"[:60].replace("/", ""), "a|b", "优化", "=cmd"])
def test_odd_names_are_folders_and_stay_in_the_record(bench: Bench, tmp_path: Path, name: str) -> None:
    ran = bench(f"name='{name}'", "optimizer=adam", "workload=toy", "steps=2")
    assert ran.returncode == 0, ran.stderr
    assert ran.records[0]["name"] == name
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.isascii()


def test_a_folder_that_cannot_be_made_is_one_line(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file, not a folder")
    ran = bench("optimizer=adam", "workload=toy", "steps=2")
    assert ran.returncode == 1
    assert len(ran.stderr.splitlines()) == 1
    assert "runs" in ran.stderr


def test_the_options_of_the_loop(bench: Bench) -> None:
    ran = bench("optimizer=adamw", "workload=mlp", "steps=20", "schedule=cosine", "warmup_steps=5", "clip_norm=1.0",
                "accumulate=2", "dtype=bfloat16", "record_every=5", "eval_every=10",
                "measure.sample_every=8")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    (folder,) = ran.folder.glob("runs/default/adamw-mlp-*")
    lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 5, 9, 10, 15, 17, 20], "every fifth, and the sampled ones"
    assert lines[0]["lr"] == pytest.approx(2e-4)
    assert lines[1]["lr"] == pytest.approx(1e-3)
    assert ran.records[0]["dtype"] == "bfloat16"


def test_folders_of_the_user_are_found_among_any_arguments() -> None:
    here = str(Path.cwd())
    assert user_folders([]) == [here]
    assert user_folders(["-m", "--config-dir", "/a/b", "seed=1"]) == [here, "/a/b", "/a"]
    assert user_folders(["--config-dir=/a/b", "-cd"])[:3] == [here, "/a/b", "/a"]
