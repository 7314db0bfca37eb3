"""WSP on the simulated, noisy hashtags of the digits, from random weights or, with --config.init_from.run, from an MAE.

python -m mae_pp_jax train --config=configs/wsp/digits.py --workdir=runs/mae_wsp --config.init_from.run=runs/mae

Effective batch 128; learning rate 1e-3, absolute at this batch. Hardware: 2 CPU cores, minutes.
Expected: the rows "WSP" and "MAE→WSP" of the demo's table (README.md). Run here on 2026-11-25, as part of the demo.
"""

import ml_collections

from ..digits import MODEL, TRAINED


def get_config(epochs=60):
    c = ml_collections.ConfigDict()
    c.stage = "wsp"
    c.train_for = f"{epochs} epochs"
    c.eval_every = "20%"
    c.global_batch = 128
    c.data = TRAINED
    c.model = dict(remat="dots")
    c.from_scratch = dict(model=MODEL)  # else it is that of the run in init_from
    c.optim = dict(lr=1e-3, lr_batch=128, warmup="10%", weight_decay=0.1)
    return c
