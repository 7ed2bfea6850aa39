"""Every optimizer that the documents describe, one algorithm a file: a pure rule, then the class with its arguments.

`core/` holds what all are built on; `automagic/` and `custom/` hold the parts of the two larger ones.
"""

from optimeter.optimizers.adafactor import Adafactor as Adafactor
from optimeter.optimizers.adam import Adam as Adam
from optimeter.optimizers.adam8bit import Adam8bit as Adam8bit
from optimeter.optimizers.adam8bit import AdamW8bit as AdamW8bit
from optimeter.optimizers.adamw import AdamW as AdamW
from optimeter.optimizers.automagic_cameamp import Automagic_CameAMP as Automagic_CameAMP
from optimeter.optimizers.automagic_cameamp import Automagic_CameAMP8bit as Automagic_CameAMP8bit
from optimeter.optimizers.automagic_cameamp import Automagic_CameAMP_COptim as Automagic_CameAMP_COptim
from optimeter.optimizers.automagic_cameamp import Automagic_CameAMP_COptim8bit as Automagic_CameAMP_COptim8bit
from optimeter.optimizers.came import CAME as CAME
from optimeter.optimizers.custom_adamw import CustomAdamW as CustomAdamW
from optimeter.optimizers.lamb import LAMB as LAMB
from optimeter.optimizers.lion import Lion as Lion
from optimeter.optimizers.shampoo import Shampoo as Shampoo
from optimeter.optimizers.sophia import SophiaG as SophiaG
from optimeter.optimizers.sophia import SophiaH as SophiaH
from optimeter.optimizers.sparse_adam import SparseAdam as SparseAdam
from optimeter.optimizers.sparse_memory_efficient_adam import SparseMemoryEfficientAdam as SparseMemoryEfficientAdam
from optimeter.optimizers.torch_muon import TorchMuon as TorchMuon
