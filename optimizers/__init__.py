"""Every optimizer the documents describe, one algorithm a file: a pure rule, then the class with its arguments."""

from optimizers.adafactor import Adafactor
from optimizers.adam import Adam
from optimizers.adam8bit import Adam8bit, AdamW8bit
from optimizers.adamw import AdamW
from optimizers.automagic_cameamp import (
    Automagic_CameAMP,
    Automagic_CameAMP8bit,
    Automagic_CameAMP_COptim,
    Automagic_CameAMP_COptim8bit,
)
from optimizers.came import CAME
from optimizers.custom_adamw import CustomAdamW
from optimizers.lamb import LAMB
from optimizers.lion import Lion
from optimizers.shampoo import Shampoo
from optimizers.sophia import SophiaG, SophiaH
from optimizers.sparse_adam import SparseAdam
from optimizers.sparse_memory_efficient_adam import SparseMemoryEfficientAdam
from optimizers.torch_muon import TorchMuon

__all__ = [
    "CAME",
    "LAMB",
    "Adafactor",
    "Adam",
    "Adam8bit",
    "AdamW",
    "AdamW8bit",
    "Automagic_CameAMP",
    "Automagic_CameAMP8bit",
    "Automagic_CameAMP_COptim",
    "Automagic_CameAMP_COptim8bit",
    "CustomAdamW",
    "Lion",
    "Shampoo",
    "SophiaG",
    "SophiaH",
    "SparseAdam",
    "SparseMemoryEfficientAdam",
    "TorchMuon",
]
