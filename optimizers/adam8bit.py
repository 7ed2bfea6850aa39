"""Adam and AdamW with both moments in 8 bits. Dettmers et al. 2022, arXiv:2110.02861.

The rules are those of Adam and AdamW; only how the moments rest differs (see `optimizers/core/quantize.py`), and the
update uses them before they are rounded.
"""

from optimeter.optimizers.adam import Adam
from optimeter.optimizers.adamw import AdamW


class Adam8bit(Adam):
    """State: 2 + 8/block_size bytes a parameter; 8 for tensors of fewer than `min_8bit_size` elements."""

    storage = "8bit"


class AdamW8bit(AdamW):
    """State: as Adam8bit's."""

    storage = "8bit"
