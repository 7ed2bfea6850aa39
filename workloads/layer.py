"""One weight matrix, fitted to another: the smallest workload whose optimizer state has a real size."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optimeter.workloads.core.workload import HELD_OUT, Workload


class Layer(Workload):
    """Least squares: y = T x for a fixed random T of `shape` (rows, columns) and Gaussian x; the data are synthetic.

    Made for memory: `layer_memory` reads what every optimizer keeps for a 4096×8192 layer.
    """

    shaped_by = ("shape",)

    def __init__(self, shape: Sequence[int] = (256, 128), batch: int = 32, **schedule: Any) -> None:
        super().__init__(**schedule)
        self.shape, self.batch = tuple(shape), batch
        rows, columns = self.shape
        self.truth = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) / columns**0.5

    def model(self) -> nn.Module:
        rows, columns = self.shape
        return nn.Linear(columns, rows, bias=False)

    def batches(self, split: str, seed: int) -> Iterable[tuple[Tensor, Tensor]]:
        return [next(self._draw(1 << 20))] if split == HELD_OUT else self._draw(seed)

    def _draw(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            x = torch.randn(self.batch, self.shape[1], generator=generator)
            yield x, x @ self.truth.T

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (model(x) - y).square().mean() / 2

    def sampled_loss(
        self, model: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Labels are Gaussian around the prediction, with variance 1: −log p is half the squared error."""
        predicted = model(batch[0])
        noise = torch.empty_like(predicted).normal_(generator=generator)
        return (predicted - (predicted.detach() + noise)).square().mean() / 2, predicted.numel()
