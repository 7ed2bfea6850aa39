"""What the optimizers are measured on, one workload a file."""

from workloads.base import Workload
from workloads.embedding import Embedding
from workloads.layer import Layer
from workloads.mlp import MLP
from workloads.toy import Toy

__all__ = ["MLP", "Embedding", "Layer", "Toy", "Workload"]
