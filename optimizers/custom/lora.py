"""The two factors of a LoRA, found by the names of the parameters and paired. Hu et al. 2021, arXiv:2106.09685."""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

# lora_A and lora_B are peft's names, lora_down and lora_up the Stable Diffusion scripts'; a name may go on behind them
# (`….lora_A.default.weight`), and words that only begin alike (`lora_unet_…`) are other names.
FACTOR = re.compile(r"(?<![A-Za-z0-9])lora_(?:embedding_)?(A|B|down|up)(?![A-Za-z0-9])")


class LoraFactors(NamedTuple):
    """How many A and B there are among some parameters, the pairs, and the names of those without a partner."""

    a: int
    b: int
    pairs: dict[Tensor, Tensor]  # B → A
    unpaired: list[str]


def role_and_stem(name: str) -> tuple[str, str] | None:
    """("A" or "B", what both names of a pair have in common), from the last factor's name in `name`; else None."""
    matches = [*FACTOR.finditer(name)]
    if not matches:
        return None
    begin, end = matches[-1].span(1)
    role = "A" if matches[-1][1] in ("A", "down") else "B"
    return role, f"{name[:begin]}*{name[end:]}"


def pair_factors(named: Iterable[tuple[str, Tensor]]) -> LoraFactors:
    """Pair A (r, in, …) and B (out, r, …) of equal stem whose ranks agree."""
    by_role: dict[str, dict[str, tuple[str, Tensor]]] = {"A": {}, "B": {}}
    for name, p in named:
        if place := role_and_stem(name):
            role, stem = place
            by_role[role][stem] = (name, p)
    a, b = by_role["A"], by_role["B"]
    paired = [stem for stem in b if stem in a and _fit(a[stem][1], b[stem][1])]
    unpaired = [name for role in (a, b) for stem, (name, _) in role.items() if stem not in paired]
    return LoraFactors(len(a), len(b), {b[stem][1]: a[stem][1] for stem in paired}, unpaired)


def _fit(a: Tensor, b: Tensor) -> bool:
    return min(a.dim(), b.dim()) >= 2 and a.shape[0] == math.prod(b.shape[1:])
