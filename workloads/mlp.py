"""Handwritten digits and a multilayer perceptron: 1,797 real images of 8×8, from scikit-learn's package."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optimeter.workloads.core.workload import HELD_OUT, Workload, draw_labels, packaged

DIGITS = "sklearn/datasets/data/digits.csv.gz"
SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
CLASSES, PIXELS, HELD_OUT_PER_CLASS = 10, 64, 36
TRAINING_IMAGES = 1797 - CLASSES * HELD_OUT_PER_CLASS

HIDDEN = {"tiny": (256,), "small": (512, 512), "base": (1024,) * 3, "large": (4096,) * 7}  # 19 k, 0.3 M, 2.2 M, 101 M


class MLP(Workload):
    """64 pixels → hidden layers with ReLU → 10 classes, cross-entropy; the score is held-out accuracy.

    Held out: 36 images of each class, 360 in all, in one shuffled split that no seed changes (in file order the last
    writers differ from the first, and accuracy stops at 0.91).
    """

    score_name = "accuracy"
    higher_is_better = True
    data = (DIGITS,)

    def __init__(self, size: str = "tiny", batch: int = 128, **schedule: Any) -> None:
        super().__init__(**schedule)
        if size not in HIDDEN:
            raise ValueError(f"workload.size must be one of {', '.join(HIDDEN)}, not {size!r}")
        if not 1 <= batch <= TRAINING_IMAGES:
            raise ValueError(f"workload.batch must be from 1 to {TRAINING_IMAGES}, the images there are, not {batch}")
        self.size, self.batch = size, batch

    def model(self) -> nn.Module:
        widths = (PIXELS, *HIDDEN[self.size])
        hidden = [part for i, o in pairwise(widths) for part in (nn.Linear(i, o), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(widths[-1], CLASSES))

    @cached_property
    def splits(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(images, labels) to train on and held out; pixels in [0, 1]."""
        table = torch.from_numpy(np.loadtxt(packaged(DIGITS, SHA256), delimiter=",", dtype=np.float32))
        images, labels = table[:, :PIXELS] / 16, table[:, PIXELS].long()
        shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        held_out = torch.cat([shuffled[labels[shuffled] == c][:HELD_OUT_PER_CLASS] for c in range(CLASSES)])
        train = shuffled[~torch.isin(shuffled, held_out)]
        return (images[train], labels[train]), (images[held_out], labels[held_out])

    def batches(self, split: str, seed: int) -> Iterable[tuple[Tensor, Tensor]]:
        train, held_out = self.splits
        return [held_out] if split == HELD_OUT else self._shuffled(*train, seed)

    def _shuffled(self, images: Tensor, labels: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for chosen in torch.randperm(len(labels), generator=generator).split(self.batch):
                if len(chosen) == self.batch:
                    yield images[chosen], labels[chosen]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def sampled_loss(
        self, model: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, int]:
        logits = model(batch[0])
        labels = draw_labels(logits, generator)
        return F.cross_entropy(logits, labels), len(labels)

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        """Share of the held-out images that are classified correctly."""
        images, labels = self.splits[1]
        first = next(model.parameters())
        predicted = model(images.to(first)).argmax(-1).cpu()
        return (predicted == labels).double().mean().item()
