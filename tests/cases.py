"""The optimizers that ship, as a table for the tests: each with arguments, and what holds for it."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from optimeter import optimizers
from optimeter.optimizers.sophia import Sophia

SHAPES = ((48, 32), (32, 48), (37,), (8, 4, 3, 3))
Oracle = Callable[[Any], torch.optim.Optimizer]  # from parameters to an independent optimizer


@dataclass(frozen=True)
class Case:
    """An optimizer of ours with arguments, and what holds for it."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    sparse: bool = False
    bytes_per_parameter: Callable[[torch.Size], float] = lambda shape: 8.0
    scale_free: bool = False  # the step does not depend on the gradient's scale
    coupled: bool = False  # two groups are not two optimizers
    nan: str = "propagate"  # to its own tensor; or "skip": the step leaves the tensor alone
    oracle: Oracle | None = None  # what takes the same steps in fp64; without one tests/test_parity.py has a formula

    def build(self, parameters: Any, **more: Any) -> torch.optim.Optimizer:
        return getattr(optimizers, self.name)(parameters, **self.arguments | more)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.arguments.items())])


def theirs(path: str, **arguments: Any) -> Oracle:
    """An optimizer by others, `module.Class` with these arguments; imported when it is built."""

    def build(parameters: Any) -> torch.optim.Optimizer:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)(parameters, **arguments)

    return build


def factored(momentum: float) -> Callable[[torch.Size], float]:
    def per_parameter(shape: torch.Size) -> float:
        rows_and_columns = sum(shape[-2:]) * (shape.numel() // (shape[-1] * shape[-2])) if len(shape) > 1 else shape[0]
        return 4 * rows_and_columns / shape.numel() + momentum

    return per_parameter


def came(shape: torch.Size, momentum: float = 4.0) -> float:
    """Two factored statistics of a matrix, one of a vector, which rests like the momentum."""
    return 2 * factored(0)(shape) + momentum if len(shape) > 1 else 2 * momentum


def in_8_bits(moments: int, block_size: int = 256) -> Callable[[torch.Size], float]:
    return lambda shape: moments * (1 + 4 * -(-shape.numel() // block_size) / shape.numel())


def cameamp(scales: int = 0, came: bool = True, warm: bool = True) -> Callable[[torch.Size], float]:
    """Mask, momentum, residual; second moment; slow momenta; and in the warm-up torque and one bit of sign."""

    def per_parameter(shape: torch.Size) -> float:
        n = shape.numel()
        rows = shape[0] if len(shape) == 2 else 0
        return 4 * (3 + came + scales + warm + rows / n) + warm * -(-n // 8) / n

    return per_parameter


def preconditioned(moments: float, most: int = 10**9, vectors: bool = False) -> Callable[[torch.Size], float]:
    """Shampoo: `moments` bytes, and 8·d² for each dimension d of each block of at most `most` in all of them."""

    def per_parameter(shape: torch.Size) -> float:
        sides = [[min(most, n - begin) for begin in range(0, n, most)] for n in shape]
        blocks = product(*sides) if vectors or len(shape) > 1 else []
        return moments + 8 * sum(d * d for block in blocks for d in block) / shape.numel()

    return per_parameter


def cameamp_8bit(scales: int = 0, warm: bool = True, block_size: int = 4096) -> Callable[[torch.Size], float]:
    """The mask takes a byte and no scale, a slow momentum half a byte."""

    def per_parameter(shape: torch.Size) -> float:
        n = shape.numel()
        rows = shape[0] if len(shape) == 2 else 0
        one, half = in_8_bits(1, block_size)(shape), (-(-n // 2) + 4 * -(-n // block_size)) / n
        return 1 + (3 + warm) * one + scales * half + (4 * rows + warm * -(-n // 8)) / n

    return per_parameter


def clocked(moments: float, block_size: int) -> Callable[[torch.Size], float]:
    return lambda shape: moments + 4 * -(-shape.numel() // block_size) / shape.numel()


SHAMPOO_1802_09568 = {
    "betas": (0.0, 1.0),
    "relative_eps": False,
    "grafting": None,
    "max_preconditioner_dim": None,
    "precondition_every": 1,
    "start_step": 1,
}
SMALL_BLOCKS = {"max_preconditioner_dim": 20, "precondition_every": 2, "start_step": 2}
ALL_8BIT = {"min_8bit_size": 0}  # the shapes of these tests are below the default
HF_ADAFACTOR = "transformers.optimization.Adafactor"
CASES = [
    Case("Adam", scale_free=True, oracle=theirs("torch.optim.Adam")),
    Case(
        "Adam",
        {"weight_decay": 0.1, "amsgrad": True},
        bytes_per_parameter=lambda shape: 12.0,
        oracle=theirs("torch.optim.Adam", weight_decay=0.1, amsgrad=True),
    ),
    Case("Adam", {"storage": "bf16"}, bytes_per_parameter=lambda shape: 4.0),
    Case("AdamW", scale_free=True, oracle=theirs("torch.optim.AdamW")),
    Case(
        "AdamW",
        {"maximize": True, "amsgrad": True},
        bytes_per_parameter=lambda shape: 12.0,
        oracle=theirs("torch.optim.AdamW", maximize=True, amsgrad=True),
    ),
    Case("AdamW", {"storage": "bf16"}, bytes_per_parameter=lambda shape: 4.0),
    Case("Adam8bit", ALL_8BIT, bytes_per_parameter=in_8_bits(2)),
    Case("AdamW8bit", ALL_8BIT | {"block_size": 64}, bytes_per_parameter=in_8_bits(2, 64)),
    Case("AdamW8bit"),  # all too small for 8 bits
    Case(
        "Lion",
        {"weight_decay": 0.1},
        bytes_per_parameter=lambda shape: 4.0,
        scale_free=True,
        oracle=theirs("pytorch_optimizer.Lion", lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1),
    ),
    Case("Lion", ALL_8BIT | {"storage": "8bit"}, bytes_per_parameter=in_8_bits(1)),
    Case("CustomAdamW", ALL_8BIT, bytes_per_parameter=lambda s: in_8_bits(2)(s) + 4 + 4 / s.numel()),  # SPD, TAM
    Case("CustomAdamW", {"storage": "fp32", "lr": 1e-2}, bytes_per_parameter=lambda s: 12 + 4 / s.numel()),
    Case(
        "CustomAdamW",
        {
            "storage": "bf16",
            "use_orthogonal_grad": True,
            "use_cautious": True,
            "weight_decay": 0.1,
            "use_grams": False,
            "use_spd": False,
            "use_tam": False,
            "use_adopt_stability": False,
        },
        bytes_per_parameter=lambda shape: 4.0,
    ),
    Case("Adafactor", bytes_per_parameter=factored(0), scale_free=True, oracle=theirs(HF_ADAFACTOR)),
    Case("Adafactor", {"beta1": 0.9, "weight_decay": 0.01}, bytes_per_parameter=factored(4)),
    Case(
        "Adafactor",
        {"beta1": 0.9, "storage": "bf16"},
        bytes_per_parameter=lambda s: factored(2)(s) if len(s) > 1 else 4.0,
    ),
    Case("Adafactor", {"lr": 1e-3, "scale_parameter": False, "relative_step": False}, bytes_per_parameter=factored(0)),
    Case("CAME", bytes_per_parameter=came, scale_free=True, oracle=theirs("came_pytorch.CAME", lr=2e-4)),
    Case("CAME", {"storage": "bf16", "weight_decay": 0.1}, bytes_per_parameter=lambda s: came(s, 2.0)),
    Case("CAME", {"clip_threshold": 0.5, "maximize": True}, bytes_per_parameter=came),
    Case("LAMB", scale_free=True),
    Case("LAMB", {"bias_correction": False, "phi": (0.1, 10.0), "trust_clip": True, "grad_averaging": False}),
    Case("LAMB", {"adam_w_mode": False, "storage": "bf16"}, bytes_per_parameter=lambda shape: 4.0),
    Case("LAMB", {"max_grad_norm": 1.0, "weight_decay": 0.0, "always_adapt": False}, scale_free=False, coupled=True),
    Case("LAMB", ALL_8BIT | {"storage": "8bit"}, bytes_per_parameter=in_8_bits(2)),
    *[
        Case(name, arguments, bytes_per_parameter=per_parameter)
        for name in ("SophiaG", "SophiaH")
        for arguments, per_parameter in (
            ({}, lambda shape: 8.0),
            ({"gamma": 1.0, "maximize": True, "seed": 5}, lambda shape: 8.0),
            ({"storage": "bf16"}, lambda shape: 4.0),
            (ALL_8BIT | {"storage": "8bit"}, in_8_bits(2)),
        )
    ],
    Case("Automagic_CameAMP", {"lr": 1e-3}, bytes_per_parameter=cameamp(), coupled=True, scale_free=True),
    Case(
        "Automagic_CameAMP",
        {"lr": 1e-3, "came": False, "maximize": True, "full_finetune": True},
        bytes_per_parameter=lambda s: cameamp(came=False)(s) - (4 / s[1] if len(s) == 2 else 0),
        coupled=True,
    ),
    Case(
        "Automagic_CameAMP",
        {"lr": 1e-3, "storage": "bf16", "warmup_steps": 4},
        bytes_per_parameter=lambda s: cameamp()(s) - 8,
        coupled=True,
    ),
    Case(
        "Automagic_CameAMP8bit",
        ALL_8BIT | {"lr": 1e-3, "blocksize": 64, "warmup_steps": 4},
        bytes_per_parameter=cameamp_8bit(block_size=64),
        coupled=True,
    ),
    Case("Automagic_CameAMP_COptim", {"lr": 1e-3}, bytes_per_parameter=cameamp(4), coupled=True),
    Case(
        "Automagic_CameAMP_COptim",
        {"lr": 1e-3, "context_window": 4, "momentum_scales": (2, 3), "warmup_steps": 4},
        bytes_per_parameter=cameamp(2),
        coupled=True,
    ),
    Case(
        "Automagic_CameAMP_COptim8bit",
        ALL_8BIT | {"lr": 1e-3, "warmup_steps": 4, "context_window": 4},
        bytes_per_parameter=cameamp_8bit(4),
        coupled=True,
    ),
    Case("Shampoo", bytes_per_parameter=preconditioned(8), scale_free=True),
    Case("Shampoo", SMALL_BLOCKS, bytes_per_parameter=preconditioned(8, 20), scale_free=True),
    Case(
        "Shampoo",
        ALL_8BIT | SMALL_BLOCKS | {"storage": "8bit", "weight_decay": 0.1},
        bytes_per_parameter=lambda shape: in_8_bits(2)(shape) + preconditioned(0, 20)(shape),
    ),
    Case("Shampoo", SHAMPOO_1802_09568, bytes_per_parameter=preconditioned(0, vectors=True)),
    Case(
        "SparseMemoryEfficientAdam",
        {"sparsity_ratio": 1.0, "storage": "fp32"},
        bytes_per_parameter=clocked(8, 1024),
        scale_free=True,
        coupled=True,
    ),
    Case(
        "SparseMemoryEfficientAdam",
        {"block_size": 64, "sparsity_ratio": 0.5, "seed": 1},  # its second draw has the block with the NaN
        bytes_per_parameter=clocked(4, 64),
        coupled=True,
    ),
    Case("SparseAdam", sparse=True),
    Case("SparseAdam", {"storage": "bf16"}, sparse=True, bytes_per_parameter=lambda shape: 4.0),
]
DENSE = [case for case in CASES if not case.sparse]


def parameters_for(
    case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((40, 8), (17, 3)) if case.sparse else SHAPES
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in shapes]


def fill_gradients(parameters: list[nn.Parameter], case: Case, step: int, scale: float = 1.0) -> None:
    """The same gradients for the same step number, whatever the optimizer did before."""
    generator = torch.Generator().manual_seed(1000 + step)
    for p in parameters:
        g = scale * torch.randn(p.shape, generator=generator)
        if case.sparse:
            rows = torch.randperm(p.shape[0], generator=generator)[:5]
            rows = torch.cat([rows, rows[:2]])  # a row may be touched twice
            g = torch.sparse_coo_tensor(rows[None], g[rows], p.shape)
        p.grad = g.to(p.device, p.dtype)


def train(
    case: Case, steps: int = 6, begin: int = 0, parameters: Any = None, optimizer: Any = None, **setup: Any
) -> Any:
    parameters = parameters or parameters_for(case, **setup)
    optimizer = optimizer or case.build(parameters)
    for step in range(begin, begin + steps):
        if isinstance(optimizer, Sophia) and step % 3 == 0:
            optimizer.update_hessian(sum(p.double().pow(4).sum() for p in parameters) / 40, samples=4)
        fill_gradients(parameters, case, step)
        optimizer.step()
    return parameters, optimizer


def same_bits(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def rows(cases: Sequence[Any], values: Sequence[Any], *others: Sequence[Any]) -> list[Any]:
    """Every case with every one of `values` and of the `others`, for pytest.

    `make test` takes each case with each of the others once, the values taking turns; the rest is for `make thorough`.
    """
    table = []
    for turn, case in enumerate(cases):
        for places in product(*(range(len(axis)) for axis in (values, *others))):
            chosen = [axis[place] for axis, place in zip((values, *others), places, strict=True)]
            its_turn = places[0] == (turn + sum(places[1:])) % len(values)
            marks = () if its_turn else pytest.mark.thorough
            table.append(pytest.param(case, *chosen, marks=marks, id="-".join(map(str, [case, *chosen]))))
    return table
