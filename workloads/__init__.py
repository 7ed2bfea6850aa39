"""What the optimizers are measured on, one workload a file; `core/` has the base class and where data come from."""

from optimeter.workloads.core.workload import Workload as Workload
from optimeter.workloads.embedding import Embedding as Embedding
from optimeter.workloads.layer import Layer as Layer
from optimeter.workloads.mlp import MLP as MLP
from optimeter.workloads.sd_lora import SDLora as SDLora
from optimeter.workloads.t5 import T5 as T5
from optimeter.workloads.toy import Toy as Toy
