"""The two real workloads: transformers' T5 on bytes, and LoRA on diffusers' UNet."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import workloads
from conf.build import about, build_workload, optimizer_builder
from measure.predict import without_compiling
from measure.run import Settings, Training, fingerprints
from tests.conftest import PROJECT, Ran
from tests.test_conf import OPTIMIZERS, composed, sweep_folder  # noqa: F401 (a fixture that `composed` needs)
from workloads import T5, SDLora, cache, diffusion, photographs
from workloads.pretrained import Checkpoint

SMALL: dict[str, Callable[..., workloads.Workload]] = {
    "t5": lambda **given: T5(**{"batch": 2, "length": 32, "steps": 3} | given),
    "sd_lora": lambda **given: SDLora(**{"batch": 2, "base_steps": 0, "steps": 3} | given),
}
both = pytest.mark.parametrize("name", SMALL)


def flat(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.double().flatten() for part in batch.values()])


# ------------------------------------------------------------------------------------------------ models and batches


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
    model = T5(size, steps=1).shapes()
    assert sum(p.numel() for p in model.parameters()) == count
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize(("rank", "count"), [(4, 797_184), (8, 1_594_368), (16, 3_188_736), (128, 25_509_888)])
def test_stable_diffusions_lora_has_the_known_sizes(rank: int, count: int) -> None:
    model = SDLora("sd15", rank=rank, steps=1).shapes()
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


# ----------------------------------------------------------------------------------------------------------- T5's text


def test_bytes_are_what_byt5_reads() -> None:
    from transformers import ByT5Tokenizer

    tokens, tokenizer = T5(steps=1).tokens, ByT5Tokenizer()
    text = tokenizer.decode(tokens.held_out[:200].tolist())
    assert tokenizer(text, add_special_tokens=False).input_ids == tokens.held_out[:200].tolist()
    assert tokens.sentinels[:2].tolist() == tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_1>"])
    assert tokens.end == tokenizer.eos_token_id
    assert len(tokens.train) > 200_000


@pytest.mark.parametrize("length", [16, 33, 128, 512, 2048])
def test_what_is_cut_out_and_what_is_left_make_the_text(length: int) -> None:
    workload = T5(batch=3, length=length, steps=1)
    whole, noise, spans = workload.cuts
    batch = next(iter(workload.batches("train", 0)))
    assert batch["input_ids"].shape[1] in (length, length - 1)
    assert batch["labels"].shape == (3, noise + spans + 1)
    assert noise == round(0.15 * whole)
    text = bytes(workload.tokens.train.sub(3).tolist())
    for inputs, labels, shown in zip(batch["input_ids"], batch["labels"], batch["decoder_input_ids"], strict=True):
        assert shown.tolist() == [0, *labels[:-1].tolist()]
        assert inputs[-1] == labels[-1] == 1
        ends = [[*(row >= 259).nonzero().flatten().tolist(), len(row) - 1] for row in (inputs, labels)]
        assert [inputs[i].item() for i in ends[0][:-1]] == [259 + i for i in range(spans)]
        kept = [inputs[a:b] for a, b in pairwise([0, *(i + 1 for i in ends[0])])]
        cut = [labels[a + 1 : b] for a, b in pairwise(ends[1])]
        pieces = [part[part < 259] for pair in zip(kept, cut, strict=False) for part in pair]
        assert bytes((torch.cat(pieces) - 3).tolist()) in text


def test_the_held_out_topics_are_not_trained_on() -> None:
    tokens = T5(steps=1).tokens
    train, held_out = (bytes(part.sub(3).tolist()) for part in (tokens.train, tokens.held_out))
    assert 0.02 < len(held_out) / len(train) < 0.3
    assert not sum(held_out[start : start + 200] in train for start in range(0, len(held_out) - 200, 50))


# ------------------------------------------------------------------------------------------------------- photographs


def test_no_held_out_pixel_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = torch.arange(640.0).expand(3, 427, 640)
    generator = torch.Generator().manual_seed(0)
    left = photographs.cut_out(columns[:, :, : photographs.BORDER], 50, 64, generator)
    right = photographs.cut_out(columns[:, :, photographs.BORDER :], 50, 64, generator)
    assert left.shape == (50, 3, 64, 64)
    assert left.max() < photographs.BORDER <= right.min()
    assert photographs.cut_out(columns[:, :, photographs.BORDER :] / 640, 2, 512, generator).shape == (2, 3, 512, 512)


def test_latents_are_standardised_and_the_triples_fixed() -> None:
    tensors = SMALL["sd_lora"]().latents.tensors  # type: ignore[attr-defined]
    seen = torch.cat([tensors["china_train"], tensors["flower_train"]])
    assert seen.shape == (512, 4, 8, 8)
    assert seen.mean((0, 2, 3)).abs().max() < 1e-4
    assert (seen.std((0, 2, 3)) - 1).abs().max() < 1e-4
    assert not torch.equal(tensors["china_text"], tensors["flower_text"])
    triples = diffusion.held_out(tensors, ["flower"])
    assert len(triples["timestep"].unique()) == 256
    assert {len(part) for part in triples.values()} == {256}
    assert torch.equal(triples["text"], tensors["flower_text"].expand(256, -1, -1))


def test_noise_follows_the_schedule_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    clean, timestep = torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    batch = diffusion.noised(clean, timestep, torch.zeros(3, 77, 32), torch.Generator().manual_seed(0))
    torch.testing.assert_close(batch["noisy"], schedule.add_noise(clean, batch["noise"], timestep))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[workloads.Workload, nn.Module, dict[str, torch.Tensor]]]:
    found = {}
    for name, make in SMALL.items():
        torch.manual_seed(0)
        workload = make()
        model = workload.model()
        found[name] = (workload, model, {key: value.clone() for key, value in model.state_dict().items()})
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@both
def test_every_optimizer_takes_three_steps(name: str, optimizer: str, models: Any) -> None:
    workload, model, start = models[name]
    spec = composed(f"optimizer={optimizer}")["optimizer"]
    if workload.unsuitable(about(spec)) or about(spec)["hessian_every"]:
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
    assert {key for key in trained if "lora_A" not in key} <= moved <= trained
    assert all(p.isfinite().all() for p in model.parameters())


@both
def test_three_steps_in_bf16_with_checkpointing(name: str) -> None:
    from optimizers import AdamW

    workload = SMALL[name](gradient_checkpointing=True, batch=8)
    settings = Settings(3, dtype=torch.bfloat16)
    blocks = Training(workload, lambda named: AdamW([p for _, p in named], lr=1e-2), settings).run()
    assert blocks["status"] == "ok"
    assert blocks["parameters"]["bytes"] == 2 * blocks["parameters"]["count"]
    assert blocks["checks"]["parameters_moved"]
    assert blocks["checks"]["frozen_unchanged"]


def test_both_learn_through_bench_and_say_what_they_started_from(bench: Callable[..., Ran]) -> None:
    ran = bench("-m", "workload=sd_lora,t5", "optimizer=adamw", "steps=60", "eval_every=60")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lora, t5 = ran.records
    assert (lora["workload"], t5["workload"]) == ("sd_lora", "t5")
    assert lora["quality"]["final_loss"] < 0.96 * lora["quality"]["first_loss"]
    assert t5["quality"]["final_loss"] < 0.8 * t5["quality"]["first_loss"]
    assert t5["weights"] == {"source": "random"}
    assert lora["weights"]["source"] == "random"
    assert lora["weights"]["base_steps"] == 300
    assert len(lora["weights"]["base_sha256"]) == 64
    assert lora["parameters"]["trainable"] == 39_936
    for record in ran.records:
        assert record["checks"]["parameters_moved"]
        assert record["checks"]["frozen_unchanged"]
        assert record["memory"]["predicted_state_bytes"] == record["memory"]["state_bytes"]
    done = subprocess.run(
        [sys.executable, "-m", "reports", str(ran.folder / "runs" / "default")],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (ran.folder / "runs" / "default" / "report" / "index.html").read_text()
    assert f"random weights, base {lora['weights']['base_sha256'][:8]}" in page


# ----------------------------------------------------------------------------------------------- what is kept


def made(factor: float) -> dict[str, torch.Tensor]:
    """Made in a process of its own: what it writes into this file is how often."""
    with open(os.environ["MADE"], "a") as file:
        file.write("made\n")
    if factor < 0:
        raise ValueError("no negative factor")
    return {"x": factor * torch.arange(3.0), "n": torch.tensor(1)}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[float], cache.Kept]]:
    monkeypatch.setenv("OPTIMETER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MADE", str(tmp_path / "made"))
    yield lambda factor: cache.kept(made, data=[], libraries=[], factor=factor)


def times(folder: Path) -> int:
    return len((folder / "made").read_text().split())


def test_what_was_made_once_is_kept(kept: Callable[[float], cache.Kept], tmp_path: Path) -> None:
    first = kept(2.0)
    assert first.tensors["x"].tolist() == [0, 2, 4]
    assert kept(2.0).sha256 == first.sha256
    assert times(tmp_path) == 1
    assert kept(3.0).sha256 != first.sha256
    assert times(tmp_path) == 2
    assert not list((tmp_path / "cache").glob("*.tmp"))


@pytest.mark.parametrize("damage", [b"", b"nonsense", None], ids=["empty", "nonsense", "a flipped bit"])
def test_what_is_damaged_is_made_again_and_said(
    kept: Callable[[float], cache.Kept], tmp_path: Path, damage: bytes | None, capfd: pytest.CaptureFixture
) -> None:
    first = kept(2.0)
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    capfd.readouterr()
    assert kept(2.0).sha256 == first.sha256
    assert times(tmp_path) == 2
    assert "made again" in capfd.readouterr().err


def test_two_that_want_it_at_once_make_it_once(kept: Callable[[float], cache.Kept], tmp_path: Path) -> None:
    code = (
        "from tests.test_finetuning import cache, made\n"
        "print(cache.kept(made, data=[], libraries=[], factor=5.0).sha256)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert len({process.communicate(timeout=120)[0] for process in started}) == 1
    assert all(process.returncode == 0 for process in started)
    assert times(tmp_path) == 1


def test_what_cannot_be_made_says_why(kept: Callable[[float], cache.Kept]) -> None:
    with pytest.raises(RuntimeError, match=r"tests.test_finetuning.made failed: ValueError: no negative factor"):
        kept(-1.0)


# ------------------------------------------------------------------------------------------------ weights of others


def test_weights_that_are_not_there_are_an_error_of_one_line(bench: Callable[..., Ran], tmp_path: Path) -> None:
    nowhere = {"HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1"}
    for arguments in (
        ["-m", "workload=t5", "workload.size=small", "workload.weights=cache,hub"],
        ["workload=sd_lora", "workload.size=sd15", "workload.weights=cache"],
    ):
        ran = bench(*arguments, "optimizer=adamw", environment=nowhere)
        assert ran.returncode == 2
        assert set(ran.statuses) == {"error"}
    reasons = {record["config"]["workload"]["weights"] + record["workload"]: record["reason"] for record in ran.records}
    assert "run `hf download google-t5/t5-small`" in reasons["cachet5"]
    assert "run `hf download stable-diffusion-v1-5/stable-diffusion-v1-5`" in reasons["cachesd_lora"]
    assert "cannot be had from the Hugging Face hub" in reasons["hubt5"]
    assert not any("\n" in reason for reason in reasons.values())


def test_a_hub_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workloads.pretrained.HUB_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", endpoint)
        checkpoint = Checkpoint("hub", "someone/something", None, "config.json", "x")
        with pytest.raises(ConnectionError, match="weights=hub: someone/something cannot be had"):
            _ = checkpoint.commit


def test_weights_from_the_cache_are_those_and_their_revision_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    original, commit = T5(steps=1).model(), "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "models--someone--t5-tiny"
    original.save_pretrained(home / "snapshots" / commit)  # type: ignore[operator]
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path))
    workload = T5(weights="cache", repository="someone/t5-tiny", steps=1)
    torch.manual_seed(2)
    model = workload.model()
    for a, b in zip(original.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert model.training
    assert workload.provenance() == {"source": "cache", "repository": "someone/t5-tiny", "revision": commit}
    (home / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="is not whole"):
        workload.model()


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


# --------------------------------------------------------------------------------------------------------- imports


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, bench, conf.child, conf.build, workloads\n"
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
    from conf.build import identity

    found = identity("workload", {"_target_": "workloads.SDLora"})
    assert set(found["libraries"]) == {"diffusers", "peft", "transformers", "pillow"}
    assert set(found["sources"]) >= {"workloads.sd_lora", "workloads.diffusion", "workloads.photographs"}
    assert "workloads.t5" not in found["sources"]
    assert set(found["data"]) == set(SDLora.data)
    assert "libraries" not in identity("workload", {"_target_": "workloads.MLP"})
    spec = composed("workload=sd_lora")["workload"]
    assert isinstance(build_workload(spec, listed_only=True), SDLora)
