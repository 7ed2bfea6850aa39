"""What the optimizers are measured on, one workload a file."""

from workloads.base import Workload
from workloads.embedding import Embedding
from workloads.layer import Layer
from workloads.mlp import MLP
from workloads.sd_lora import SDLora
from workloads.t5 import T5
from workloads.toy import Toy

__all__ = ["MLP", "T5", "Embedding", "Layer", "SDLora", "Toy", "Workload"]
