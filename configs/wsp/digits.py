"""WSP on the noisy hashtags of the embedded digits, from random weights or, with --config.init_from.run, from an MAE.

python -m mae_pp_jax train --config=configs/wsp/digits.py --workdir=runs/mae_wsp --config.init_from.run=runs/mae
"""

import ml_collections


def get_config(epochs=60):
    c = ml_collections.ConfigDict()
    c.stage = "wsp"
    c.train_for = f"{epochs} epochs"
    c.eval_every = "20%"
    c.global_batch = 128
    c.data = dict(name="digits_hashtags", image_size=8, crop="shift", shift=1, flip=False, cache="ram", threads=1)
    c.model = dict(size="Ti/2", width=96, depth=4, heads=4, remat="dots")
    c.optim = dict(lr=1e-3, lr_batch=128, warmup="10%", weight_decay=0.1)
    return c
