"""Full finetuning on the labels of the digits; tested on the 360 held-out ones.

python -m mae_pp_jax train --config=configs/classify/digits.py --workdir=runs/ft --config.init_from.run=runs/mae_wsp

Effective batch 128; learning rate 1e-3, absolute at this batch. Hardware: 2 CPU cores, a minute.
Expected: the column "finetune" of the demo's table (README.md). Run here on 2026-11-25, as part of the demo.
"""

import ml_collections

from ..digits import MODEL, TRAINED


def get_config(epochs=30):
    c = ml_collections.ConfigDict()
    c.stage = "classify"
    c.train_for = f"{epochs} epochs"
    c.eval_every = "20%"
    c.global_batch = 128
    c.data = TRAINED
    c.model = dict(remat="dots", pool="cls", drop_path=0.1)
    c.from_scratch = dict(model=MODEL)  # else it is that of the run in init_from
    c.optim = dict(lr=1e-3, lr_batch=128, warmup="10%", weight_decay=0.05)
    c.layer_decay = 0.75
    c.label_smoothing = 0.1
    return c
