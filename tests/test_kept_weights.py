"""What workloads keep in the cache, and weights that others trained: made once, never silently something else."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from optimeter.workloads import T5
from optimeter.workloads.core import cache
from optimeter.workloads.core.pretrained import Checkpoint
from tests.conftest import PROJECT, Ran
from tests.making import made

# ------------------------------------------------------------------------------------------------------- what is kept


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
        "from tests.making import made\n"
        "from optimeter.workloads.core import cache\n"
        "print(cache.kept(made, data=[], libraries=[], factor=5.0).sha256)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert len({process.communicate(timeout=120)[0] for process in started}) == 1
    assert all(process.returncode == 0 for process in started)
    assert times(tmp_path) == 1


def test_what_cannot_be_made_says_why(kept: Callable[[float], cache.Kept]) -> None:
    with pytest.raises(RuntimeError, match=r"tests.making.made failed: ValueError: no negative factor"):
        kept(-1.0)


# -------------------------------------------------------------------------------------------------- weights of others


MISSING = [
    (
        ("t5", "small"),
        {"cache": "run `hf download google-t5/t5-small`", "hub": "cannot be had from the Hugging Face hub"},
    ),
    pytest.param(
        ("sd_lora", "sd15"),
        {"cache": "run `hf download stable-diffusion-v1-5/stable-diffusion-v1-5`"},
        marks=pytest.mark.thorough,
    ),
]


@pytest.mark.parametrize(("model", "words"), MISSING, ids=["t5", "sd_lora"])
def test_weights_that_are_not_there_are_an_error_of_one_line(
    bench: Callable[..., Ran], tmp_path: Path, model: tuple[str, str], words: dict[str, str]
) -> None:
    """`words`: where weights are looked for → what the reason says."""
    workload, size = model
    nowhere = {"HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1"}
    sweep = ("-m", f"workload={workload}", f"workload.size={size}", f"workload.weights={','.join(words)}")
    ran = bench(*sweep, "optimizer=adamw", environment=nowhere)
    assert ran.returncode == 2
    assert set(ran.statuses) == {"error"}
    reasons = {record["config"]["workload"]["weights"]: record["reason"] for record in ran.records}
    assert reasons.keys() == words.keys()
    for source, reason in reasons.items():
        assert words[source] in reason
        assert "\n" not in reason


def test_a_hub_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimeter.workloads.core.pretrained.HUB_SECONDS", 2)
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
