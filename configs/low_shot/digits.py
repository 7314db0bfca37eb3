"""Classifiers from five labelled digits per class on a frozen encoder, for five draws of the fifty images.

python -m mae_pp_jax train --config=configs/low_shot/digits.py --workdir=runs/5shot --config.init_from.run=runs/mae_wsp
python -m mae_pp_jax train --config=configs/low_shot/digits.py:adapter=lora --workdir=runs/5shot_lora \
  --config.init_from.run=runs/mae_wsp

Effective batch 250, 50 per draw. A linear head: AdamW, learning rate 1e-2, absolute. adapter=vpt_shallow, vpt_deep,
adaptformer or lora trains adapters and head at four learning rates and picks one for each draw on 500 training images
that it was not given. Hardware: 2 CPU cores, a minute or two.
Expected: without adapters the column "5-shot" of the demo's table (README.md); with them the table "Adapters" of
configs/README.md. Run here on 2026-11-25.
"""

import ml_collections

from ..digits import FROZEN, MODEL

# Of each kind: keys of the adapter, then of the optimizer.
ADAPTERS = {
    "vpt_shallow": (dict(tokens=5), dict(name="sgd", lr=0.5, weight_decay=1e-4)),
    "vpt_deep": (dict(tokens=5), dict(name="sgd", lr=0.5, weight_decay=1e-4)),
    "adaptformer": (dict(bottleneck=16), dict(name="sgd", lr=0.5, weight_decay=0.0)),
    "lora": (dict(rank=4, alpha=4.0), dict(name="adamw", lr=2e-2, weight_decay=0.01)),
}


def get_config(shots=5, adapter="none"):
    if adapter not in ("none", *ADAPTERS):
        raise ValueError(f"adapter={adapter} is not one of none, {', '.join(ADAPTERS)}")
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
    if adapter != "none":
        own, optim = ADAPTERS[adapter]
        c.adapter = dict(own, kind=adapter)
        c.optim = dict(optim, lr_batch=0, warmup="10%")
        c.lr_grid, c.select_images = (1.0, 0.3, 0.1, 0.03), 500
        c.train_for, c.eval_every = "100 epochs", "50%"
    return c
