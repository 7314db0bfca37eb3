"""MAE on the 1,437 embedded training digits (8×8 pixels): the first stage of the demo, minutes on two CPU cores.

python -m mae_pp_jax train --config=configs/mae/digits.py --workdir=runs/mae
"""

import ml_collections


def get_config(epochs=200):
    c = ml_collections.ConfigDict()
    c.stage = "mae"
    c.train_for = f"{epochs} epochs"
    c.eval_every = "20%"
    c.global_batch = 128
    c.data = dict(name="digits_hashtags", image_size=8, crop="shift", shift=1, flip=False, cache="ram", threads=1)
    c.model = dict(size="Ti/2", width=96, depth=4, heads=4, remat="dots", positions="sincos")
    c.mae = dict(decoder_width=48, decoder_depth=2, decoder_heads=4)
    c.optim = dict(lr=1.5e-3, lr_batch=128, warmup="5%")
    return c
