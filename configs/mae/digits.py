"""MAE on the 1,437 training digits of scikit-learn (8 × 8 pixels): the first stage of the demo.

python -m mae_pp_jax train --config=configs/mae/digits.py --workdir=runs/mae

Effective batch 128; learning rate 1.5e-3, absolute at this batch. Hardware: 2 CPU cores, minutes.
Expected: the rows "MAE" of the demo's table (README.md). Run here on 2026-11-25, as part of the demo.
"""

import ml_collections

from ..digits import MODEL, TRAINED


def get_config(epochs=200):
    c = ml_collections.ConfigDict()
    c.stage = "mae"
    c.train_for = f"{epochs} epochs"
    c.eval_every = "20%"
    c.global_batch = 128
    c.data = TRAINED
    c.model = dict(MODEL, remat="dots", positions="sincos")
    c.mae = dict(decoder_width=48, decoder_depth=2, decoder_heads=4)
    c.optim = dict(lr=1.5e-3, lr_batch=128, warmup="5%")
    return c
