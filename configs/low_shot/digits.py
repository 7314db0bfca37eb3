"""Classifiers from five labelled digits a class on frozen features, five draws of the fifty images.

python -m mae_pp_jax train --config=configs/low_shot/digits.py --workdir=runs/5shot --config.init_from.run=runs/mae_wsp
"""

import ml_collections


def get_config(shots=5):
    c = ml_collections.ConfigDict()
    c.stage = "low_shot"
    c.train_for = "60 epochs"
    c.eval_every = "20%"
    c.global_batch = 250
    c.shots, c.splits = shots, 5
    c.data = dict(name="digits_hashtags", image_size=8, crop="none", flip=False, cache="ram", threads=1)
    c.model = dict(size="Ti/2", width=96, depth=4, heads=4, pool="cls")
    c.optim = dict(name="adamw", lr=1e-2, lr_batch=0, warmup="10%", weight_decay=0.1)
    return c
