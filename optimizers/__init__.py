"""Every optimizer the documents describe, one algorithm a file: a pure rule, then the class with its arguments."""

from optimeter.optimizers.adafactor import Adafactor
from optimeter.optimizers.adam import Adam
from optimeter.optimizers.adam8bit import Adam8bit, AdamW8bit
from optimeter.optimizers.adamw import AdamW
from optimeter.optimizers.automagic_cameamp import (
    Automagic_CameAMP,
    Automagic_CameAMP8bit,
    Automagic_CameAMP_COptim,
    Automagic_CameAMP_COptim8bit,
)
from optimeter.optimizers.came import CAME
from optimeter.optimizers.custom_adamw import CustomAdamW
from optimeter.optimizers.lamb import LAMB
from optimeter.optimizers.lion import Lion
from optimeter.optimizers.shampoo import Shampoo
from optimeter.optimizers.sophia import SophiaG, SophiaH
from optimeter.optimizers.sparse_adam import SparseAdam
from optimeter.optimizers.sparse_memory_efficient_adam import SparseMemoryEfficientAdam
from optimeter.optimizers.torch_muon import TorchMuon

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
