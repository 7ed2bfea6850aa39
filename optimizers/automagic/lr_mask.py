"""A learning rate for every element, after Automagic (a public optimizer without a paper).

During warm-up an element's rate is bumped up where its gradient keeps its sign and down where it flips, between min_lr
and max_lr; afterwards the mask is frozen. The sign is remembered in one bit an element. With 8-bit storage a rate is
one of 256 even levels, and a bump, mostly smaller than a level, is rounded stochastically: it counts on average.
"""

from typing import Any

import torch
from torch import Tensor

from optimeter.optimizers.core.quantize import in_blocks
from optimeter.optimizers.core.storage import uniform

LEVELS = 255
SALT = 1 << 20  # of the random numbers: away from the small ones that the moments use
FIRST_PEAK = 1e-6  # the highest lr that a new mask counts as seen; the first step adds what the group's lr is above it


def start(p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """Fresh state: the mask at the group's lr, and the peak, the highest lr that the mask has taken in."""
    lr = group["lr"]
    state: dict[str, Any] = {"lr_peak": min(lr, FIRST_PEAK)}
    if group["storage"] == "8bit":
        position = torch.full(p.shape, (lr - group["min_lr"]) / level(group), dtype=torch.float32, device=p.device)
        state["lr_mask"] = round_to_levels(position, (group["seed"], 0, SALT))
    else:
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        state["lr_mask"] = torch.full(p.shape, lr, dtype=dtype, device=p.device)
    state["polarity"] = pack(torch.zeros(p.shape, dtype=torch.bool, device=p.device))
    return state


def update(state: dict[str, Any], g: Tensor, group: dict[str, Any]) -> None:
    """Let the mask follow the signs of gradient `g` while the state remembers signs; follow a rising lr until then."""
    rise = max(group["lr"] - state["lr_peak"], 0.0)
    state["lr_peak"] += rise
    if "polarity" not in state:
        return
    positive = g > 0
    same = positive == unpack(state["polarity"], g.shape)
    state["polarity"] = pack(positive)
    bump, mask = group["lr_bump"], state["lr_mask"]
    change = same.to(torch.promote_types(mask.dtype, torch.float32)).mul_(2 * bump).add_(rise - bump)
    if mask.dtype == torch.uint8:
        position = change.div_(level(group)).add_(mask)
        mask.copy_(round_to_levels(position, (group["seed"], state["step"], SALT)))
    else:
        mask.add_(change).clamp_(group["min_lr"], group["max_lr"])


def rates(state: dict[str, Any], group: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """The learning rates in `dtype`; the mask itself where it rests in full precision, so not to be written to."""
    mask = state["lr_mask"]
    return mask.to(dtype).mul_(level(group)).add_(group["min_lr"]) if mask.dtype == torch.uint8 else mask


def schedule(state: dict[str, Any], group: dict[str, Any]) -> float:
    """What a scheduler makes of the mask: the group's lr over its peak, applied in use and never written back."""
    return group["lr"] / state["lr_peak"] if state["lr_peak"] else 0.0


def level(group: dict[str, Any]) -> float:
    """The distance of two neighbouring levels."""
    return max(group["max_lr"] - group["min_lr"], 1e-30) / LEVELS


def round_to_levels(position: Tensor, key: tuple[int, int, int]) -> Tensor:
    """Stochastically rounded and clamped to 0 … 255, uint8; `position` is overwritten."""
    noise = uniform(position.numel(), key, position.device).view(position.shape)
    return position.add_(noise).floor_().clamp_(0, LEVELS).to(torch.uint8)


def pack(bits: Tensor) -> Tensor:
    """Booleans of any shape, eight a byte: uint8, (⌈n/8⌉,)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (in_blocks(bits.to(torch.uint8), 8) << shifts).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """The booleans again, in `shape`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(1) >> shifts & 1).bool().view(-1)[: shape.numel()].view(shape)
