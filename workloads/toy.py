"""A polynomial in one variable, minimised from x₀ = 3: exact, instant, and one of the documents prints its trace."""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from optimeter.workloads.core.workload import HELD_OUT, Workload


class Polynomial(nn.Module):
    """Σᵢ f(xᵢ) over the coordinates of a vector x."""

    def __init__(self, coefficients: Sequence[float], start: float, dimension: int) -> None:
        super().__init__()
        self.coefficients = coefficients
        self.x = nn.Parameter(torch.full((dimension,), start))

    def forward(self) -> Tensor:
        value = torch.zeros_like(self.x)
        for coefficient in self.coefficients:  # Horner's scheme
            value = value * self.x + coefficient
        return value.sum()


class Toy(Workload):
    """f(x) = x⁴ + 3x³ + 2 by default; `polynomial` lists the coefficients, highest power first ([1,0,0,0,0] is x⁴).

    Every coordinate of x starts at `start`; x and f(x) after each step are recorded (x: the first coordinate).
    """

    score_name = "f"

    def __init__(
        self, polynomial: Sequence[float] = (1, 3, 0, 0, 2), start: float = 3.0, dimension: int = 1, **schedule: Any
    ) -> None:
        super().__init__(**schedule)
        self.polynomial, self.start, self.dimension = tuple(polynomial), float(start), dimension

    def model(self) -> nn.Module:
        return Polynomial(self.polynomial, self.start, self.dimension)

    def batches(self, split: str, seed: int) -> Iterable[tuple]:
        return [()] if split == HELD_OUT else repeat(())

    def loss(self, model: nn.Module, batch: tuple) -> Tensor:
        return model()

    def extra(self, model: nn.Module) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"x": model.x[0].clone(), "f": model()}  # type: ignore[index]
