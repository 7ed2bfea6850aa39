"""SparseMemoryEfficientAdam: AdamW that updates some blocks a step and keeps its moments in bf16. No paper.

A step draws a share of all blocks of a group. A block that is not drawn stays as it is: neither it nor its moments
move, nothing decays, and its gradient of that step is lost. Each block has its own clock, the number of its updates,
which bias correction and learning rate follow: with a share of 0.1, a warm-up of 1000 takes some 10,000 steps.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optimeter.optimizers.core.arguments import whole
from optimeter.optimizers.core.shell import NO_8BIT, SIGNED, UNSIGNED, Basic, Shell, Unpack, constructor, working
from optimeter.optimizers.core.storage import rounded


def sparse_memory_efficient_adam(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    clock: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    warmup_steps: int,
    warmup_factor: float,
    lr_decay_steps: int,
    lr_decay_factor: float,
) -> None:
    """p, g, m, v: the k drawn blocks, (k, block size); clock: their updates with this one, (k, 1), in fp64.

    The rate climbs from warmup_factor·lr to lr in warmup_steps, and falls, linearly from lr_decay_steps to twice as
    many, to lr_decay_factor·lr. eps is added before the bias correction.
    """
    beta1, beta2 = betas
    warmth = (warmup_factor + (1 - warmup_factor) * clock / warmup_steps).clamp(max=1)
    decay = 1 - (1 - lr_decay_factor) * (clock / lr_decay_steps - 1).clamp(0, 1)
    rate = lr * warmth * decay
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    p.mul_((1 - rate * weight_decay).to(p.dtype))
    size = rate * (1 - beta2**clock).sqrt() / (1 - beta1**clock)
    p.sub_(m.div(v.sqrt().add_(eps)).mul_(size.to(p.dtype)))


class SparseMemoryEfficientAdam(Shell):
    """State: 4 + 4/block_size bytes a parameter: two moments in bf16 (8 in all with fp32) and an int32 clock a block.

    What is saved is time, not state: every block is drawn some day. A tensor's last block may be short; of the B
    blocks that have a gradient, max(1, ⌊sparsity_ratio·B⌋) are drawn, from (seed, step) alone.
    """

    moments = {"exp_avg": SIGNED, "exp_avg_sq": UNSIGNED}
    rule = staticmethod(sparse_memory_efficient_adam)
    storage = "bf16"
    checks = NO_8BIT | {
        "sparsity_ratio": (lambda ratio: 0 < ratio <= 1, "in (0, 1]: the share of the blocks that a step updates"),
        "warmup_steps": whole(1),
        "warmup_factor": (lambda factor: 0 <= factor <= 1, "in [0, 1]"),
        "lr_decay_steps": whole(1),
        "lr_decay_factor": (lambda factor: 0 <= factor <= 1, "in [0, 1]"),
    }

    @constructor
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        block_size: int = 1024,
        sparsity_ratio: float = 0.1,
        warmup_steps: int = 1000,
        warmup_factor: float = 0.1,
        lr_decay_steps: int = 10000,
        lr_decay_factor: float = 0.1,
        **common: Unpack[Basic],
    ) -> None: ...

    def start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = super().start(p, group)
        if "block_step" not in state:
            count = -(-p.numel() // group["block_size"])
            state["block_step"] = torch.zeros(count, dtype=torch.int32, device=p.device)
        return state

    @torch.no_grad()
    def step_group(self, group: dict[str, Any]) -> None:
        """Draw among the blocks of all tensors that have a gradient, and update those drawn."""
        candidates = [p for p in group["params"] if p.grad is not None]
        for p in candidates:
            self.need_dense(p)
        states = [self.start(p, group) for p in candidates]
        for state in states:
            state["step"] += 1
        key = (group["seed"], max((state["step"] for state in states), default=0))
        drawn = draw([len(state["block_step"]) for state in states], group["sparsity_ratio"], key)
        for p, numbers in zip(candidates, drawn, strict=True):
            self.update(p, numbers, group)

    def update(self, p: Tensor, numbers: np.ndarray, group: dict[str, Any]) -> None:
        """Update the blocks of one tensor that have these numbers; the short one is a table of its own."""
        state = self.state[p]
        flat = [x.reshape(-1) for x in (p, p.grad, *(state[name] for name in self.moments))]
        whole_blocks, rest = divmod(p.numel(), group["block_size"])
        for first, count, width in ((0, whole_blocks, group["block_size"]), (whole_blocks, 1, rest)):
            rows = numbers[(numbers >= first) & (numbers < first + count)] - first
            if len(rows):
                begin = first * group["block_size"]
                tables = [x[begin : begin + count * width].view(count, width) for x in flat]
                clocks = state["block_step"][first : first + count].unsqueeze(1)
                on_device = torch.from_numpy(rows).to(p.device, non_blocking=True)
                self.update_rows(tables, clocks, on_device, begin, (group["seed"], state["step"]), group)
        if not p.is_contiguous():
            p.copy_(flat[0].view(p.shape))

    def update_rows(
        self,
        tables: list[Tensor],
        clocks: Tensor,
        rows: Tensor,
        begin: int,
        key: tuple[int, int],
        group: dict[str, Any],
    ) -> None:
        """Gather some rows of p, g, m and v, all (blocks, width) views, apply the rule, and scatter them back."""
        p, g, *moments = (table.index_select(0, rows) for table in tables)
        p = working(p)
        g = (-g if group["maximize"] else g).to(p.dtype)
        moments = [moment.to(p.dtype) for moment in moments]
        clock = clocks.index_select(0, rows) + 1
        self.rule(p, g, *(*moments, clock.double()), **self.settings_of(group))
        clocks.index_copy_(0, rows, clock)
        width = tables[0].shape[1]
        position = (begin + rows.unsqueeze(1) * width + torch.arange(width, device=rows.device)).int()
        for salt, (table, value) in enumerate(zip((tables[0], *tables[2:]), (p, *moments), strict=True)):
            table.index_copy_(0, rows, rounded(value, table.dtype, (*key, salt), position))


def draw(counts: list[int], share: float, key: tuple[int, int]) -> list[np.ndarray]:
    """Some of the blocks of tensors with `counts` blocks each: for each tensor, the numbers of its own, ascending.

    Drawn on the host, where it is known without asking a device how many of them each tensor has.
    """
    total = sum(counts)
    many = min(total, max(1, int(share * total + 1e-9)))
    generator = np.random.default_rng([number % (1 << 64) for number in key])
    drawn = np.sort(generator.choice(total, many, replace=False, shuffle=False))
    ends = np.cumsum(counts, dtype=np.int64)
    pieces = np.split(drawn, np.searchsorted(drawn, ends))  # the last one is empty
    return [piece - (end - count) for piece, end, count in zip(pieces[:-1], ends, counts, strict=True)]
