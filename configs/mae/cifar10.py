"""MAE on the 50,000 training images of CIFAR-10, small enough for two CPU cores.

python -m mae_pp_jax train --config=configs/mae/cifar10.py --workdir=runs/mae

Effective batch 128; learning rate 1.5e-3, absolute at this batch. Hardware: 2 CPU cores, 5 minutes for 8 epochs.
Expected: the rows "MAE" of configs/README.md, "CIFAR-10". Run here on 2026-11-25, as part of pipelines/cifar10.py.
"""

import ml_collections

from ..cifar10 import MODEL, dataset


def get_config(data="cifar10", epochs=8.0):
    c = ml_collections.ConfigDict()
    c.stage = "mae"
    c.train_for = f"{epochs} epochs"
    c.eval_every = "50%"
    c.global_batch = 128
    c.update(dataset(data, crop="random_resized", crop_scale=(0.2, 1.0)))
    c.model = dict(MODEL, remat="dots", positions="sincos")
    c.mae = dict(decoder_width=48, decoder_depth=2, decoder_heads=4)
    c.optim = dict(lr=1.5e-3, lr_batch=0, warmup="5%")
    return c
