"""Linear classifier on frozen features of the digits.

python -m mae_pp_jax train --config=configs/linear/digits.py --workdir=runs/linear --config.init_from.run=runs/mae_wsp

Effective batch 128; learning rate 1e-2, absolute. Hardware: 2 CPU cores, a minute.
Expected: the column "linear" of the demo's table (README.md). Run here on 2026-11-25, as part of the demo.
"""

import ml_collections

from ..digits import FROZEN, MODEL


def get_config(epochs=15):
    c = ml_collections.ConfigDict()
    c.stage = "linear"
    c.train_for = f"{epochs} epochs"
    c.eval_every = "20%"
    c.global_batch = 128
    c.data = FROZEN
    c.model = dict(pool="cls")
    c.from_scratch = dict(model=MODEL)  # else it is that of the run in init_from
    c.optim = dict(name="adamw", lr=1e-2, lr_batch=0, warmup="10%", weight_decay=0.0)
    return c
