"""Parameters of given shapes and nothing else: what `measure.shapes` puts in a workload's place."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from optimeter.workloads.core.workload import NoTask, Workload

NO_TASK = "bare shapes have no data and no loss; only measure=step runs on them"
STD = 0.02  # of the weights


class Shapes(Workload):
    """`shapes` is a list of (count, dimensions); there is no task, so that only an optimizer's step can be measured."""

    def __init__(self, shapes: Sequence[tuple[int, Sequence[int]]], **schedule: Any) -> None:
        super().__init__(**schedule)
        self.shapes = [tuple(dimensions) for count, dimensions in shapes for _ in range(count)]

    def model(self) -> nn.Module:
        return nn.ParameterList([nn.Parameter(STD * torch.randn(shape)) for shape in self.shapes])

    def batches(self, split: str, seed: int) -> Iterable[Any]:
        raise NoTask(NO_TASK)
