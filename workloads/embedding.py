"""Word vectors by skip-gram with negative sampling (Mikolov et al. 2013, arXiv:1310.4546), on CPython's own manual.

All parameters are two tables, of which a step touches a few rows: the case that SparseAdam exists for.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optimeter.workloads.core.manual import HELD_OUT_EVERY, TOPICS, topics
from optimeter.workloads.core.workload import HELD_OUT, Workload

HELD_OUT_PAIRS = 4096


class SkipGram(nn.Module):
    """Two tables of `rows` × `dim`: word vectors, and the vectors of words seen as context."""

    def __init__(self, rows: int, dim: int, sparse: bool) -> None:
        super().__init__()
        self.word = nn.Embedding(rows, dim, sparse=sparse)
        self.context = nn.Embedding(rows, dim, sparse=sparse)
        nn.init.uniform_(self.word.weight, -0.5 / dim, 0.5 / dim)
        nn.init.zeros_(self.context.weight)

    def forward(self, words: Tensor, contexts: Tensor) -> Tensor:
        """Logits (b, k) of k candidate contexts (b, k) for each of b words (b,)."""
        return torch.einsum("bd,bkd->bk", self.word(words), self.context(contexts))


class Embedding(Workload):
    """`negatives` noise words (unigram counts to the power 3/4) for each true neighbour at most `window` words away.

    `rows` widens both tables beyond the vocabulary (its words are spread evenly over them), up to 10⁷ and more.
    `sparse` decides the kind of gradient; in the YAML it follows the optimizer. The loss is the mean over word pairs.
    """

    data = (TOPICS,)
    shaped_by = ("rows", "dim")
    follows = ("sparse",)

    def __init__(
        self,
        rows: int | None = None,
        dim: int = 64,
        batch: int = 512,
        window: int = 4,
        negatives: int = 5,
        sparse: bool = False,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if not isinstance(sparse, bool):
            raise ValueError(f"workload.sparse must be true or false, not {sparse!r}")
        self.rows, self.dim, self.batch, self.window, self.negatives = rows, dim, batch, window, negatives
        self.sparse = sparse
        self.gradients = "sparse" if sparse else "dense"
        if rows is not None and rows < len(self.vocabulary):
            raise ValueError(f"workload.rows must be at least {len(self.vocabulary)}, the vocabulary, not {rows}")

    @cached_property
    def topics(self) -> list[list[str]]:
        """The words of each topic."""
        return [re.findall(r"\w+", text.lower()) for text in topics()]

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Word → its rank by frequency (ties in alphabetical order)."""
        counts = Counter(word for topic in self.topics for word in topic)
        return {word: rank for rank, word in enumerate(sorted(counts, key=lambda w: (-counts[w], w)))}

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """(word, neighbour) pairs of table rows, (n, 2), to train on and held out."""
        rows = self.rows or len(self.vocabulary)
        spread = torch.arange(len(self.vocabulary)) * rows // len(self.vocabulary)
        splits: tuple[list[Tensor], list[Tensor]] = ([], [])
        for number, topic in enumerate(self.topics):
            ids = spread[torch.tensor([self.vocabulary[word] for word in topic])]
            for distance in range(1, self.window + 1):
                near = torch.stack([ids[:-distance], ids[distance:]], 1)
                splits[number % HELD_OUT_EVERY == 0].extend((near, near.flip(1)))
        return torch.cat(splits[0]), torch.cat(splits[1])

    @cached_property
    def noise(self) -> tuple[Tensor, Tensor]:
        """The rows in use and the cumulative probability of drawing each as noise."""
        rows, counts = self.pairs[0][:, 0].unique(return_counts=True)
        weights = counts.double() ** 0.75
        return rows, (weights / weights.sum()).cumsum(0)

    def model(self) -> nn.Module:
        return SkipGram(self.rows or len(self.vocabulary), self.dim, self.sparse)

    def batches(self, split: str, seed: int) -> Iterable[tuple[Tensor, Tensor]]:
        return [self._draw(*self._held_out)] if split == HELD_OUT else self._train(seed)

    @property
    def _held_out(self) -> tuple[Tensor, torch.Generator]:
        generator = torch.Generator().manual_seed(0)
        pairs = self.pairs[1]
        return pairs[torch.randperm(len(pairs), generator=generator)[:HELD_OUT_PAIRS]], generator

    def _train(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        pairs = self.pairs[0]
        while True:
            yield self._draw(pairs[torch.randint(len(pairs), (self.batch,), generator=generator)], generator)

    def _draw(self, pairs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Words (b,) and candidate contexts (b, 1 + negatives), the true one first."""
        rows, cumulative = self.noise
        uniform = torch.rand(len(pairs), self.negatives, generator=generator, dtype=torch.float64)
        noise = rows[torch.searchsorted(cumulative, uniform).clamp_(max=len(rows) - 1)]
        return pairs[:, 0], torch.cat([pairs[:, 1:], noise], 1)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = model(*batch)
        sign = torch.full_like(logits, -1)
        sign[:, 0] = 1
        return -F.logsigmoid(sign * logits).sum(1).mean()

    def sampled_loss(
        self, model: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Each candidate is called true with the probability that the model gives it; words are what is counted."""
        logits = model(*batch)
        probability = logits.detach().sigmoid().nan_to_num(0.5)  # on CUDA a draw from NaN would stop the device
        sign = 2 * probability.bernoulli(generator=generator) - 1
        return -F.logsigmoid(sign * logits).sum(1).mean(), len(logits)
