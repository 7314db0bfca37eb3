"""Classifiers from five labelled digits per class on frozen features, for five draws of the fifty images.

python -m mae_pp_jax train --config=configs/low_shot/digits.py --workdir=runs/5shot --config.init_from.run=runs/mae_wsp

Effective batch 250, 50 per draw; learning rate 1e-2, absolute. Hardware: 2 CPU cores, a minute.
Expected: the column "5-shot" of the demo's table (README.md). Run here on 2026-11-25, as part of the demo.
"""

import ml_collections

from ..digits import FROZEN, MODEL


def get_config(shots=5):
    c = ml_collections.ConfigDict()
    c.stage = "low_shot"
    c.train_for = "60 epochs"
    c.eval_every = "20%"
    c.global_batch = 250
    c.shots, c.splits = shots, 5
    c.data = FROZEN
    c.model = dict(pool="cls")
    c.from_scratch = dict(model=MODEL)  # else it is that of the run in init_from
    c.optim = dict(name="adamw", lr=1e-2, lr_batch=0, warmup="10%", weight_decay=0.1)
    return c
