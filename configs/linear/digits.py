"""Linear classifier on frozen features of the embedded digits.

python -m mae_pp_jax train --config=configs/linear/digits.py --workdir=runs/linear --config.init_from.run=runs/mae_wsp
"""

import ml_collections


def get_config(epochs=15):
    c = ml_collections.ConfigDict()
    c.stage = "linear"
    c.train_for = f"{epochs} epochs"
    c.eval_every = "20%"
    c.global_batch = 128
    c.data = dict(name="digits_hashtags", image_size=8, crop="none", flip=False, cache="ram", threads=1)
    c.model = dict(size="Ti/2", width=96, depth=4, heads=4, pool="cls")
    c.optim = dict(name="adamw", lr=1e-2, lr_batch=0, warmup="10%", weight_decay=0.0)
    return c
