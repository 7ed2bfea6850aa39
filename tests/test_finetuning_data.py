"""T5's cut-out text, and photographs as latents."""

from itertools import pairwise

import pytest
import torch

from optimeter.workloads import T5, SDLora
from optimeter.workloads.core import diffusion, photographs

# ---------------------------------------------------------------------------------------------------------- T5's text


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


# -------------------------------------------------------------------------------------------------------- photographs


def test_no_held_out_pixel_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = torch.arange(640.0).expand(3, 427, 640)
    generator = torch.Generator().manual_seed(0)
    left = photographs.cut_out(columns[:, :, : photographs.BORDER], 50, 64, generator)
    right = photographs.cut_out(columns[:, :, photographs.BORDER :], 50, 64, generator)
    assert left.shape == (50, 3, 64, 64)
    assert left.max() < photographs.BORDER <= right.min()
    assert photographs.cut_out(columns[:, :, photographs.BORDER :] / 640, 2, 512, generator).shape == (2, 3, 512, 512)


def test_latents_are_standardised_and_the_triples_fixed() -> None:
    tensors = SDLora(steps=1).latents.tensors
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
