"""What the optimizers are measured on, one workload a file."""

from optimeter.workloads.core.workload import Workload
from optimeter.workloads.embedding import Embedding
from optimeter.workloads.layer import Layer
from optimeter.workloads.mlp import MLP
from optimeter.workloads.sd_lora import SDLora
from optimeter.workloads.t5 import T5
from optimeter.workloads.toy import Toy

__all__ = ["MLP", "T5", "Embedding", "Layer", "SDLora", "Toy", "Workload"]
