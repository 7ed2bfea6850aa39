"""The two real workloads: transformers' T5 on bytes, and LoRA on diffusers' UNet."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from optimeter import workloads
from optimeter.measure.jobs.build import build_workload, optimizer_builder
from optimeter.measure.jobs.parts import about
from optimeter.measure.memory.prediction import without_compiling
from optimeter.measure.monitor.probe import fingerprints
from optimeter.reports.page import build
from optimeter.workloads import T5, SDLora
from tests.cases import rows
from tests.conftest import PROJECT, Ran, composed, names
from tests.trials import train

SMALL: dict[str, Callable[..., workloads.Workload]] = {
    "t5": lambda **given: T5(**{"batch": 2, "length": 32, "steps": 3} | given),
    "sd_lora": lambda **given: SDLora(**{"batch": 2, "base_steps": 0, "steps": 3} | given),
}
OPTIMIZERS = [name for name in names("optimizer") if name != "any"]
both = pytest.mark.parametrize("name", SMALL)


def flat(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.double().flatten() for part in batch.values()])


# ------------------------------------------------------------------------------------------------- models and batches


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("tiny", 254_976),
        ("small", 60_506_624),
        ("base", 222_903_552),
        ("large", 737_668_096),
        ("3b", 2_851_598_336),
        ("11b", 11_307_321_344),
    ],
)
def test_t5_has_the_published_sizes(size: str, count: int) -> None:
    model = T5(size, steps=1).skeleton()
    assert sum(p.numel() for p in model.parameters()) == count
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize(("rank", "count"), [(4, 797_184), (8, 1_594_368), (16, 3_188_736), (128, 25_509_888)])
def test_stable_diffusions_lora_has_the_known_sizes(rank: int, count: int) -> None:
    model = SDLora("sd15", rank=rank, steps=1).skeleton()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trainable.values()) == count
    assert all("lora_A" in name or "lora_B" in name for name in trainable)
    assert sum(p.numel() for p in model.parameters()) - count == 859_520_964
    assert {p.device.type for p in model.parameters()} == {"meta"}


@both
def test_batches_depend_on_the_seed_and_on_nothing_else(name: str) -> None:
    workload = SMALL[name]()

    def first(split: str, seed: int) -> torch.Tensor:
        torch.rand(seed + 1)
        return torch.cat([flat(batch) for batch in islice(workload.batches(split, seed), 3)])

    assert torch.equal(first("train", 1), first("train", 1))
    assert torch.equal(first("held_out", 1), first("held_out", 2))
    assert not torch.equal(first("train", 1), first("train", 2))


@pytest.mark.parametrize("batch", [1, 3, 16, 48])
@both
def test_the_held_out_loss_is_over_the_same_data_for_every_batch_size(name: str, batch: int) -> None:
    key = {"t5": "input_ids", "sd_lora": "noisy"}[name]
    parts = [part[key] for part in SMALL[name](batch=batch).batches("held_out", 0)]
    reference = [part[key] for part in SMALL[name](batch=8).batches("held_out", 0)]
    assert torch.equal(torch.cat(parts), torch.cat(reference))
    assert len({len(part) for part in parts}) == 1
    assert sum(map(len, parts)) == {"t5": 128, "sd_lora": 256}[name]


@both
def test_the_model_follows_torchs_seed_and_only_what_should_train_has_gradients(name: str) -> None:
    workload = SMALL[name]()
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(workload.model())
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)
    loss = workload.loss(models[0], next(iter(workload.batches("train", 0))))
    loss.backward()
    assert loss.dim() == 0
    for parameter, p in models[0].named_parameters():
        assert (p.grad is not None) == (name == "t5" or "lora_" in parameter), parameter
    assert workload.unsuitable({"gradients": "sparse"})


@both
def test_checkpointing_changes_no_gradient(name: str) -> None:
    found = []
    for checkpointing in (False, True):
        workload = SMALL[name](gradient_checkpointing=checkpointing)
        torch.manual_seed(0)
        model = workload.model()
        for p in model.parameters():  # LoRA's B starts at zero, and with it A's gradient
            nn.init.normal_(p, std=0.05) if p.requires_grad and not p.any() else None
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = workload.loss(model, next(iter(workload.batches("train", 0))))
        loss.backward()
        found.append(([p.grad for p in model.parameters() if p.grad is not None], saved))
    (plain, most), (checkpointed, least) = found
    assert least < most / 2
    for a, b in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[workloads.Workload, nn.Module, dict[str, torch.Tensor]]]:
    found = {}
    for name, make in SMALL.items():
        torch.manual_seed(0)
        workload = make()
        model = workload.model()
        found[name] = (workload, model, {key: value.clone() for key, value in model.state_dict().items()})
    return found


@pytest.mark.parametrize(("optimizer", "name"), rows(OPTIMIZERS, tuple(SMALL)))
def test_every_optimizer_takes_three_steps(optimizer: str, name: str, models: Any) -> None:
    workload, model, start = models[name]
    spec = composed(f"optimizer={optimizer}")["optimizer"]
    if workload.unsuitable(about(spec)):
        return
    if about(spec)["hessian_every"]:  # the run loop joins these two
        blocks = train(SMALL[name](batch=8), optimizer_builder(spec), steps=3, hessian_every=2)
        assert blocks.status == "ok"
        assert blocks.time.estimator.n == 2
        assert blocks.checks.frozen_unchanged
        assert blocks.checks.parameters_moved
        return
    model.load_state_dict(start)
    named = [(key, p) for key, p in model.named_parameters() if p.requires_grad]
    before = fingerprints(model)
    built = optimizer_builder(spec)(named)
    getattr(built, "train", lambda: None)()
    for batch in islice(workload.batches("train", 0), 3):

        def closure(batch: Any = batch) -> torch.Tensor:
            built.zero_grad()
            loss = workload.loss(model, batch)
            loss.backward()
            return loss

        with without_compiling():
            if about(spec)["closure"]:
                built.step(closure)
            else:
                closure()
                built.step()
    after = fingerprints(model)
    trained = {key for key, _ in named}
    moved = {key for key in before if before[key] != after[key]}
    # LoRA's A has no gradient before B has moved, and then a small one: three steps may not show in its last bit.
    assert moved
    assert moved <= trained
    if optimizer != "sparse_memory_efficient_adam":  # a step of it updates a tenth of the blocks
        assert {key for key in trained if "lora_A" not in key} <= moved
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["t5", pytest.param("sd_lora", marks=pytest.mark.thorough)])
def test_three_steps_in_bf16_with_checkpointing(name: str) -> None:
    from optimeter.optimizers import AdamW

    workload = SMALL[name](gradient_checkpointing=True, batch=8)
    blocks = train(workload, lambda named: AdamW([p for _, p in named], lr=1e-2), steps=3, dtype=torch.bfloat16)
    assert blocks.status == "ok"
    assert blocks.parameters.bytes == 2 * blocks.parameters.count
    assert blocks.checks.parameters_moved
    assert blocks.checks.frozen_unchanged


@pytest.mark.parametrize(
    ("base_steps", "steps", "falls_to"),
    [(2, 3, None), pytest.param(200, 100, 0.96, marks=pytest.mark.thorough)],  # less than the default saves a minute
    ids=["short", "long"],
)
def test_both_learn_through_bench_and_say_what_they_started_from(
    bench: Callable[..., Ran], base_steps: int, steps: int, falls_to: float | None
) -> None:
    """`falls_to`: below which part of its first value LoRA's loss falls, where there are steps enough for it."""
    lora_run = ("workload=sd_lora", f"workload.base_steps={base_steps}", f"steps={steps}")
    for arguments in (lora_run, ("workload=t5", "steps=60")):
        ran = bench(*arguments, "optimizer=adamw", "eval_every=100")
        assert ran.returncode == 0, ran.stdout + ran.stderr
    lora, t5 = ran.records
    assert (lora["workload"], t5["workload"]) == ("sd_lora", "t5")
    assert falls_to is None or lora["quality"]["final_loss"] < falls_to * lora["quality"]["first_loss"]
    assert t5["quality"]["final_loss"] < 0.8 * t5["quality"]["first_loss"]
    assert t5["weights"] == {"source": "random"}
    assert lora["weights"]["source"] == "random"
    assert lora["weights"]["base_steps"] == base_steps
    assert len(lora["weights"]["base_sha256"]) == 64
    assert lora["parameters"]["trainable"] == 39_936
    for record in ran.records:
        assert record["checks"]["parameters_moved"]
        assert record["checks"]["frozen_unchanged"]
        assert record["memory"]["predicted_state_bytes"] == record["memory"]["state_bytes"]
    page = build(ran.folder / "runs" / "default", []).read_text()
    assert f"random weights, base {lora['weights']['base_sha256'][:8]}" in page


# ------------------------------------------------------------------------------------------------------------ imports


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, optimeter.bench, optimeter.measure.jobs.build, optimeter.measure.jobs.child\n"
        "from optimeter import workloads\n"
        "w = [workloads.T5(steps=1), workloads.SDLora(steps=1)]\n"
        "next(iter(w[0].batches('train', 0)))\n"
        "heavy = {'transformers', 'diffusers', 'peft', 'accelerate'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_toy_imports_nothing_heavy(bench: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "spy.py").write_text(
        "import sys, torch\n"
        "class Spy(torch.optim.SGD):\n"
        "    def step(self, closure=None):\n"
        "        assert not {'transformers', 'diffusers', 'peft'} & set(sys.modules)\n"
        "        return super().step(closure)\n"
    )
    ran = bench("optimizer=any", "optimizer._target_=spy.Spy", "optimizer.lr=1e-3", "workload=toy", "steps=2")
    assert ran.returncode == 0, json.dumps(ran.records)


def test_a_version_of_what_the_model_is_made_of_is_part_of_the_identity() -> None:
    from optimeter.measure.jobs.sources import identity

    found = identity("workload", {"_target_": "optimeter.workloads.SDLora"})
    assert set(found["libraries"]) == {"diffusers", "peft", "transformers", "pillow"}
    assert set(found["sources"]) >= {
        "optimeter.workloads.sd_lora",
        "optimeter.workloads.core.diffusion",
        "optimeter.workloads.core.photographs",
    }
    assert "optimeter.workloads.t5" not in found["sources"]
    assert set(found["data"]) == set(SDLora.data)
    assert "libraries" not in identity("workload", {"_target_": "optimeter.workloads.MLP"})
    spec = composed("workload=sd_lora")["workload"]
    assert isinstance(build_workload(spec, listed_only=True), SDLora)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: T5("huge", steps=1), "tiny, small, base, large, 3b, 11b"),
        (lambda: T5(batch=0, steps=1), "workload.batch"),
        (lambda: T5(length=8, steps=1), "workload.length"),
        (lambda: T5(weights="maybe", steps=1), "random, cache, hub"),
        (lambda: T5(weights="hub", steps=1), "no published weights of size=tiny"),
        (lambda: SDLora("sdxl", steps=1), "tiny, sd15"),
        (lambda: SDLora(rank=0, steps=1), "workload.rank"),
        (lambda: SDLora(resolution=100, steps=1), "multiple of 16"),
        (lambda: SDLora(base_steps=-1, steps=1), "workload.base_steps"),
        (lambda: SDLora(weights="cache", steps=1), "no published weights of size=tiny"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        make()
    assert "\n" not in str(refusal.value)
