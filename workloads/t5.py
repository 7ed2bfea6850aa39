"""T5 (Raffel et al. 2020, arXiv:1910.10683), transformers' own, filling in spans of text that were cut out of it.

With random weights the text is bytes, as ByT5 reads it (Xue et al. 2022, arXiv:2105.13626): no vocabulary file is
needed. With a checkpoint's weights it is the checkpoint's own pieces.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optimeter.workloads.core.manual import HELD_OUT_EVERY, TOPICS, topics
from optimeter.workloads.core.pretrained import SOURCES, Checkpoint
from optimeter.workloads.core.workload import HELD_OUT, Workload, draw_labels

PAD = 0  # also what the decoder starts with: T5Config has no default for it
PUBLISHED = {"vocab_size": 32_128, "dropout_rate": 0.1, "decoder_start_token_id": PAD}
SIZES: dict[str, dict[str, Any]] = {  # parameters
    "tiny": {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 2, "num_heads": 4}
    | {"vocab_size": 384, "dropout_rate": 0.0, "decoder_start_token_id": PAD},  # 0.3 M, the bytes' vocabulary
    "small": PUBLISHED | {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},  # 60.5 M
    "base": PUBLISHED | {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},  # 222.9 M
    "large": PUBLISHED | {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16},  # 737.7 M
    "3b": PUBLISHED | {"d_model": 1024, "d_kv": 128, "d_ff": 16_384, "num_layers": 24, "num_heads": 32},  # 2.85 B
    "11b": PUBLISHED | {"d_model": 1024, "d_kv": 128, "d_ff": 65_536, "num_layers": 24, "num_heads": 128},  # 11.3 B
}
HELD_OUT_TEXTS = 128
NOISE_DENSITY = 0.15  # share of the text that is cut out
MEAN_SPAN = {"bytes": 20, "pieces": 3}  # tokens of one cut: ByT5's and T5's


@dataclass(frozen=True)
class Tokens:
    """The text to train on and held out, (n,) each; the tokens that stand for the cuts, and the one that ends."""

    train: Tensor
    held_out: Tensor
    sentinels: Tensor
    end: int


class T5(Workload):
    """Span corruption on CPython's manual, every tenth topic held out; the loss is the mean over target tokens.

    `length` is the most tokens that the encoder sees. With `weights` other than "random" a `repository` may be named
    in place of the published one of the size, and a `revision`.
    """

    data = (TOPICS,)
    libraries = ("transformers",)
    installed_by = "optimeter[finetune]"

    def __init__(
        self,
        size: str = "tiny",
        batch: int = 16,
        length: int = 128,
        gradient_checkpointing: bool = False,
        weights: str = "random",
        repository: str | None = None,
        revision: str | None = None,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if size not in SIZES:
            raise ValueError(f"workload.size must be one of {', '.join(SIZES)}, not {size!r}")
        if not (isinstance(batch, int) and batch >= 1):
            raise ValueError(f"workload.batch must be a whole number of at least 1, not {batch!r}")
        if not (isinstance(length, int) and 16 <= length <= 2048):
            raise ValueError(f"workload.length must be from 16 to 2048 tokens, not {length!r}")
        if weights not in SOURCES:
            raise ValueError(f"workload.weights must be one of {', '.join(SOURCES)}, not {weights!r}")
        published = None if size == "tiny" else f"google-t5/t5-{size}"
        self.checkpoint = Checkpoint(weights, repository or published, revision, "config.json", f"size={size}")
        self.size, self.batch, self.length, self.checkpointing = size, batch, length, gradient_checkpointing

    def model(self) -> nn.Module:
        from transformers import T5ForConditionalGeneration

        if self.checkpoint.source == "random":
            return self._built()
        return self._prepared(self.checkpoint.load(T5ForConditionalGeneration, dtype=torch.float32))

    def skeleton(self) -> nn.Module:
        with torch.device("meta"):
            return self._built()

    def _built(self) -> nn.Module:
        from transformers import T5Config, T5ForConditionalGeneration

        return self._prepared(T5ForConditionalGeneration(T5Config(**SIZES[self.size])))

    def _prepared(self, model: Any) -> nn.Module:
        if self.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model.train()

    def provenance(self) -> dict[str, Any]:
        return self.checkpoint.provenance()

    @cached_property
    def tokens(self) -> Tokens:
        """The text as tokens, its topics one after the other."""
        texts = split_text()
        if self.checkpoint.source == "random":
            train, held_out = (torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) + 3 for text in texts)
            return Tokens(train.long(), held_out.long(), torch.arange(259, 359), end=1)  # 0, 1, 2: pad, end, unknown
        from transformers import AutoTokenizer

        tokenizer = self.checkpoint.load(AutoTokenizer)
        train, held_out = (torch.tensor(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
        sentinels = tokenizer.convert_tokens_to_ids([f"<extra_id_{index}>" for index in range(100)])
        return Tokens(train, held_out, torch.tensor(sentinels), tokenizer.eos_token_id)

    @property
    def cuts(self) -> tuple[int, int, int]:
        """(tokens of the text, of it cut out, in how many cuts): the longest text whose rest fits into `length`."""
        mean = MEAN_SPAN["bytes" if self.checkpoint.source == "random" else "pieces"]
        for whole in range(2 * self.length, 0, -1):
            noise = round(whole * NOISE_DENSITY)
            spans = max(1, round(noise / mean))
            if whole - noise + spans + 1 <= self.length:
                return whole, noise, spans
        raise AssertionError(self.length)

    def batches(self, split: str, seed: int) -> Iterable[dict[str, Tensor]]:
        if split != HELD_OUT:
            return self._draw(self.tokens.train, self.batch, torch.Generator().manual_seed(seed))
        size = math.gcd(HELD_OUT_TEXTS, self.batch)  # equal parts: their mean is the mean over all texts
        whole = next(self._draw(self.tokens.held_out, HELD_OUT_TEXTS, torch.Generator().manual_seed(0)))
        parts = zip(*(tensor.split(size) for tensor in whole.values()), strict=True)
        return [dict(zip(whole, part, strict=True)) for part in parts]

    def _draw(self, text: Tensor, batch: int, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        whole, noise, spans = self.cuts
        while True:
            starts = torch.randint(len(text) - whole + 1, (batch,), generator=generator).tolist()
            pairs = [
                corrupt(text[start : start + whole], noise, spans, self.tokens.sentinels, self.tokens.end, generator)
                for start in starts
            ]
            inputs, targets = (torch.stack(part) for part in zip(*pairs, strict=True))
            yield {
                "input_ids": inputs,
                "decoder_input_ids": F.pad(targets[:, :-1], (1, 0), value=PAD),
                "labels": targets,
            }

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(logits(model, batch), batch["labels"].flatten())

    def sampled_loss(
        self, model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Each target token is drawn on its own, given the true ones before it."""
        found = logits(model, batch)
        labels = draw_labels(found, generator)
        return F.cross_entropy(found, labels), len(labels)


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Scores of every target token of the batch, (batch × length, vocabulary), fp32."""
    inputs = {name: batch[name] for name in ("input_ids", "decoder_input_ids")}
    return model(**inputs, use_cache=False).logits.flatten(0, 1).float()


def split_text() -> tuple[str, str]:
    """What is trained on and what is held out; a paragraph that stands in topics of both is held out alone."""
    train: list[str] = []
    held_out: list[str] = []
    for number, topic in enumerate(topics()):
        (train if number % HELD_OUT_EVERY else held_out).extend(re.split(r"\n\s*\n", topic))
    also = {paragraph.strip() for paragraph in held_out}
    return "\n\n".join(part for part in train if part.strip() not in also), "\n\n".join(held_out)


def corrupt(
    text: Tensor, noise: int, spans: int, sentinels: Tensor, end: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cut `noise` tokens out of `text` in `spans` places: (what is left, what was cut out).

    In both a sentinel stands for what is in the other one, and the end follows.
    """
    kept = divide(len(text) - noise, spans, generator)
    cut = divide(noise, spans, generator)
    pieces = text.split([length for pair in zip(kept, cut, strict=True) for length in pair])
    ending = torch.tensor([end])
    left = [part for index in range(spans) for part in (pieces[2 * index], sentinels[index : index + 1])]
    out = [part for index in range(spans) for part in (sentinels[index : index + 1], pieces[2 * index + 1])]
    return torch.cat([*left, ending]), torch.cat([*out, ending])


def divide(total: int, parts: int, generator: torch.Generator) -> Sequence[int]:
    """`parts` lengths of at least 1 that add up to `total`, every such list as likely as another."""
    places = torch.randperm(total - 1, generator=generator)[: parts - 1].sort().values + 1
    return torch.diff(places, prepend=torch.tensor([0]), append=torch.tensor([total])).tolist()
