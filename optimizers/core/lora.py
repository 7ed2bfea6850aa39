"""The two factors of a LoRA, found by the names of the parameters and paired. Hu et al. 2021, arXiv:2106.09685."""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

# lora_A and lora_B are peft's names, lora_down and lora_up the Stable Diffusion scripts'; a name may go on behind them
# (`….lora_A.default.weight`), and words that only begin alike (`lora_unet_…`) are other names.
FACTOR = re.compile(r"(?<![A-Za-z0-9])lora_(?:embedding_)?(A|B|down|up)(?![A-Za-z0-9])")


class Factors(NamedTuple):
    """The LoRA factors among some parameters; `unpaired` holds the names of those without a partner."""

    a: int
    b: int
    pairs: dict[Tensor, Tensor]  # B → A
    unpaired: list[str]


def role_and_stem(name: str) -> tuple[str, str] | None:
    """("A" or "B", what both names of a pair have in common), from the last factor's name in `name`; else None."""
    found = [*FACTOR.finditer(name)]
    if not found:
        return None
    begin, end = found[-1].span(1)
    return ("A" if found[-1][1] in ("A", "down") else "B"), f"{name[:begin]}*{name[end:]}"


def find_factors(named: Iterable[tuple[str, Tensor]]) -> Factors:
    """Pair A (r, in, …) and B (out, r, …) of equal stem whose ranks agree."""
    found: dict[str, dict[str, tuple[str, Tensor]]] = {"A": {}, "B": {}}
    for name, p in named:
        if place := role_and_stem(name):
            role, stem = place
            found[role][stem] = (name, p)
    a, b = found["A"], found["B"]
    paired = [stem for stem in b if stem in a and _fit(a[stem][1], b[stem][1])]
    unpaired = [name for role in (a, b) for stem, (name, _) in role.items() if stem not in paired]
    return Factors(len(a), len(b), {b[stem][1]: a[stem][1] for stem in paired}, unpaired)


def _fit(a: Tensor, b: Tensor) -> bool:
    return min(a.dim(), b.dim()) >= 2 and a.shape[0] == math.prod(b.shape[1:])
