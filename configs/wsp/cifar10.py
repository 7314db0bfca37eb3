"""WSP on simulated, noisy hashtags of CIFAR-10, from random weights or, with --config.init_from.run, from an MAE.

python -m mae_pp_jax train --config=configs/wsp/cifar10.py --workdir=runs/mae_wsp --config.init_from.run=runs/mae

Effective batch 128; learning rate 1e-3, absolute at this batch. Hardware: 2 CPU cores, 4 minutes.
Expected: the rows "WSP" and "MAE→WSP" of configs/README.md, "CIFAR-10". Run here on 2026-11-25, as part of
pipelines/cifar10.py.
"""

import ml_collections

from ..cifar10 import MODEL, dataset

HASHTAGS = 146  # that are simulated for ten classes


def get_config(data="cifar10", epochs=2.0):
    c = ml_collections.ConfigDict()
    c.stage = "wsp"
    c.train_for = f"{epochs} epochs"
    c.eval_every = "50%"
    c.global_batch = 128
    c.update(dataset(data, crop="shift", shift=4, hashtags="simulated"))
    if data == "cifar10":
        c.declared.hashtags = HASHTAGS
    c.model = dict(remat="dots")
    c.from_scratch = dict(model=MODEL)
    c.optim = dict(lr=1e-3, lr_batch=0, warmup="10%", weight_decay=0.1)
    return c
