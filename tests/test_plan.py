"""Plans are what the runs will hold, to the byte, without allocating what they speak of."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

from optimeter.measure.jobs.build import build_workload, optimizer_builder
from optimeter.measure.memory.ledger import ledger
from optimeter.measure.memory.prediction import predict
from optimeter.measure.methods.base import Trial
from optimeter.measure.methods.plan import CARDS, CONTEXT_BYTES, GIB, Plan, cards, plan, skeleton
from optimeter.measure.methods.train import Training
from optimeter.measure.records.fields import to_plain
from optimeter.measure.records.read import read_records
from optimeter.reports.plans import memory_plan
from optimeter.workloads import Workload
from tests.conftest import composed
from tests.trials import trial

PAIRS = [
    *(("mlp", name) for name in ("adamw", "adamw8bit", "adafactor", "torch_adamw", "bnb_adamw8bit", "lion")),
    *(("layer", name) for name in ("adam8bit", "torch_adafactor", "torch_muon", "hf_adafactor")),
    *(("embedding", name) for name in ("sparse_adam", "adafactor_momentum")),
    *(("t5", name) for name in ("adamw8bit", "came")),
    ("sd_lora", "custom_adamw"),
    ("toy", "adam"),
]
ROWS = [pytest.param(*pair, id="-".join(pair)) for pair in PAIRS]
ROWS.append(pytest.param("sd_lora", "bnb_adamw8bit", marks=pytest.mark.thorough, id="sd_lora-bnb_adamw8bit"))
UNTRAINED = {"sd_lora": ["workload.base_steps=0"]}  # the base takes half a minute, and its shapes are the same


def planned(workload: str, optimizer: str) -> Trial:
    config = composed(
        f"workload={workload}", f"optimizer={optimizer}", "steps=2", "measure=plan", *UNTRAINED.get(workload, [])
    )
    sparse = {"sparse": True} if optimizer == "sparse_adam" else {}
    spec = config["workload"] | (sparse if "sparse" in config["workload"] else {})
    return trial(build_workload(spec), optimizer_builder(config["optimizer"]), steps=2)


@pytest.mark.parametrize(("workload", "optimizer"), ROWS)
def test_the_planned_state_is_the_runs_to_the_byte(workload: str, optimizer: str) -> None:
    parts = planned(workload, optimizer)
    training = Training(parts)
    training.run()
    model = training.loop.model
    held = ledger(training.loop.optimizer, model)
    findings = Plan().run(parts)
    assert findings.plan.state_bytes == held.state_bytes > 0
    assert findings.memory.by_role == held.by_role
    assert findings.memory.state_8bit_share == held.share_8bit
    assert findings.parameters.bytes == sum(p.numel() * p.element_size() for p in model.parameters())


def test_the_sum_is_of_its_parts_and_sparse_gradients_are_not_guessed() -> None:
    for optimizer, gradients in (("adam", True), ("sparse_adam", False)):
        findings = Plan().run(planned("embedding", optimizer))
        block = to_plain(findings.plan)
        names = ("parameter_bytes", "buffer_bytes", "gradient_bytes", "state_bytes", "transient_bytes")
        assert block["total_bytes"] == sum(block[name] or 0 for name in names)
        assert (block["gradient_bytes"] == block["parameter_bytes"]) is gradients
        assert ("plan.gradient_bytes" in findings.missing) is not gradients


def test_nothing_of_the_models_size_is_allocated() -> None:
    class Huge(Workload):
        gradients = "dense"

        def model(self) -> nn.Module:
            return nn.Linear(1 << 20, 1 << 20, bias=False)  # 4 TiB

    model = skeleton(Huge(steps=1), torch.float32)
    assert all(p.is_meta for p in model.parameters())
    needed = plan(model, torch.optim.AdamW)
    assert needed.parameter_bytes == needed.gradient_bytes == 4 << 40
    assert needed.state_bytes == (8 << 40) + 4
    assert needed.total_bytes == (16 << 40) + 4 + needed.transient_bytes
    assert not any(cards(needed.total_bytes).values())
    assert "fits no common card" in str(needed)


def test_a_strangers_model_is_planned_in_one_call() -> None:
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.BatchNorm1d(100))
    model[1].requires_grad_(False)
    needed = plan(model, lambda params: torch.optim.AdamW(params, lr=1e-3))
    assert needed.by_role["first_moment"] == needed.by_role["second_moment"] == 40_000
    assert (needed.parameter_bytes, needed.buffer_bytes, needed.gradient_bytes) == (40_800, 808, 40_000)
    assert needed.optimizer_bytes == needed.state_bytes + needed.transient_bytes
    assert str(needed).startswith("0.")
    assert "0.08 state" in str(needed)
    assert "parameters" in str(plan(model, lambda pairs: torch.optim.SGD([p for _, p in pairs]), named=True))
    with pytest.raises(ValueError, match="no trainable parameter"):
        plan(nn.Identity(), torch.optim.SGD)


class Doubling(torch.optim.SGD):
    """Needs four times the parameter for a moment, of which it gives half back before the end."""

    def step(self, closure: Callable | None = None) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["kept"] = torch.empty_like(p)
            scratch = torch.cat([p.grad, p.grad])
            del scratch
            view = torch.cat([p.grad, p.grad, p.grad]).view(-1)
            view.add_(1)


def test_the_transient_is_the_most_that_lives_beside_what_stays() -> None:
    p = nn.Parameter(torch.empty(1000))
    found = predict(lambda named: Doubling([p for _, p in named], lr=0.1), [("p", p)])
    assert found.transient_bytes == 3 * 4000  # the second step also replaces `kept`, before the peak
    assert found.ledger.state_bytes == 4000


def test_cards() -> None:
    smallest = CARDS[0] * GIB - CONTEXT_BYTES
    assert cards(smallest)[str(CARDS[0])]
    assert not cards(smallest + 1)[str(CARDS[0])]
    assert sum(cards(smallest + 1).values()) == len(CARDS) - 1


def test_a_plan_in_one_line_and_in_the_record(bench: Callable) -> None:
    ran = bench("measure=plan", "workload=layer", "workload.shape=[4096,8192]", "optimizer=adamw")
    assert ran.returncode == 0, ran.stderr
    record = ran.records[0]
    assert record["measure"] == "plan"
    assert record["plan"]["state_bytes"] == 8 * 4096 * 8192
    assert record["summary"] in ran.stdout
    assert "fits 8 GB" in ran.stdout
    table = memory_plan(read_records(ran.folder / "runs/default"))
    assert table
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["state GB"].value == record["plan"]["state_bytes"] / 1e9
    assert row["smallest card"].shown == "8 GB"
    again = bench("measure=plan", "workload=layer", "workload.shape=[4096,8192]", "optimizer=adamw")
    assert again.statuses == ["kept"]
    assert json.dumps(again.records[0]) == json.dumps(record)
