"""A Vision Transformer with random weights, or those of another run without head and decoder, to compare with.

python -m mae_pp_jax train --config=configs/encoder/random.py:size=B/16 --workdir=runs/random
python -m mae_pp_jax train --config=configs/encoder/random.py:size=B/16 --workdir=runs/mae_encoder --config.init_from.run=MAE_RUN

Nothing is trained: the initial weights are written as a finished run, which any stage and `evaluate --suite=image`
start from. Other weights by --config.seed=1. Hardware: any, seconds. Expected: what chance and a linear classifier on
random features reach. Run here on 2026-11-25.
"""

import ml_collections


def get_config(size="B/16", image_size=224, width=0, depth=0, heads=0, pool="cls"):
    """`width`, `depth` and `heads` replace those of the size where they are not 0."""
    c = ml_collections.ConfigDict()
    c.stage = "encoder"
    c.data = dict(image_size=image_size)
    c.model = dict(size=size, width=width, depth=depth, heads=heads, pool=pool)
    return c
