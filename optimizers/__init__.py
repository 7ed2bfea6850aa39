"""Every optimizer the documents describe, one algorithm a file: a pure rule, then the class with its arguments."""

from optimizers.adafactor import Adafactor
from optimizers.adam import Adam
from optimizers.adamw import AdamW
from optimizers.sparse_adam import SparseAdam
from optimizers.torch_muon import TorchMuon

__all__ = ["Adafactor", "Adam", "AdamW", "SparseAdam", "TorchMuon"]
