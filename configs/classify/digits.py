"""Full finetuning on the labels of the embedded digits; tested on 360 held-out ones.

python -m mae_pp_jax train --config=configs/classify/digits.py --workdir=runs/ft --config.init_from.run=runs/mae_wsp
"""

import ml_collections


def get_config(epochs=30):
    c = ml_collections.ConfigDict()
    c.stage = "classify"
    c.train_for = f"{epochs} epochs"
    c.eval_every = "20%"
    c.global_batch = 128
    c.data = dict(name="digits_hashtags", image_size=8, crop="shift", shift=1, flip=False, cache="ram", threads=1)
    c.model = dict(size="Ti/2", width=96, depth=4, heads=4, remat="dots", pool="cls", drop_path=0.1)
    c.optim = dict(lr=1e-3, lr_batch=128, warmup="10%", weight_decay=0.05)
    c.layer_decay = 0.75
    c.label_smoothing = 0.1
    return c
