"""Layer-wise learning rates: the further a block is from the head, the slower it learns."""

from typing import Any

import numpy as np


def factors(rate: float, layers: int) -> tuple[tuple[str, Any], ...]:
    """Learning rate factors rate^(layers+1-id): id 0 for patches and positions, i+1 for block i, layers+1 for the rest.

    Source: facebookresearch/mae util/lr_decay.py.

    Returns:
      Rules (pattern, factor) over parameter paths, for `core.optim`; of stacked blocks an array [layers].
    """
    blocks = np.asarray([rate ** (layers - i) for i in range(layers)], np.float32)
    return (
        (r"encoder/(patch_embed/.*|cls_token|pos_embed)", rate ** (layers + 1)),
        (r"encoder/blocks/.*", blocks),
        (r".*", 1.0),
    )
