"""Two spirals that wind round each other: the textbook's hard little classification, made from a formula."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optimeter import Workload

Batch = tuple[Tensor, Tensor]  # points (n, 2), classes (n,)


class Spirals(Workload):
    """A net of two hidden layers tells the spirals apart; the score is its accuracy on 512 points held out.

    width: of the hidden layers. turns: of each spiral, more are harder. batch: points.
    """

    score_name = "accuracy"
    higher_is_better = True
    shaped_by = ("width",)

    def __init__(self, width: int = 64, turns: float = 1.5, batch: int = 128, **schedule: Any) -> None:
        super().__init__(**schedule)
        self.width, self.turns, self.batch = width, turns, batch

    def model(self) -> nn.Module:
        hidden = [nn.Linear(2, self.width), nn.Tanh(), nn.Linear(self.width, self.width), nn.Tanh()]
        return nn.Sequential(*hidden, nn.Linear(self.width, 2))

    def batches(self, split: str, seed: int) -> Iterable[Batch]:
        if split == "held_out":
            return [self.held_out]
        return self.endless(seed)

    def endless(self, seed: int) -> Iterator[Batch]:
        """Fresh points in every batch."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.draw(self.batch, generator)

    @property
    def held_out(self) -> Batch:
        """The same points whatever the seed."""
        return self.draw(512, torch.Generator().manual_seed(2**40))

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Points of both spirals, slightly off them, and which spiral each is of."""
        classes = torch.randint(2, (count,), generator=generator)
        radius = torch.rand(count, generator=generator).sqrt()
        angle = 2 * math.pi * self.turns * radius + math.pi * classes
        points = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)
        return points + 0.02 * torch.randn(count, 2, generator=generator), classes

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        points, classes = batch
        return F.cross_entropy(model(points), classes)

    def score(self, model: nn.Module) -> float:
        weight = next(model.parameters())
        points, classes = self.held_out
        found = model(points.to(weight.device, weight.dtype)).argmax(1).cpu()
        return (found == classes).double().mean().item()
