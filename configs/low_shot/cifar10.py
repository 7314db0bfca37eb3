"""k labelled images per class of CIFAR-10 and an adapter in a frozen encoder, for three draws of the images.

python -m mae_pp_jax train --config=configs/low_shot/cifar10.py:adapter=lora,shots=5 --workdir=DIR \
  --config.init_from.run=runs/mae_wsp

Effective batch 50 per draw (10 at one shot); AdamW, the learning rate is absolute. Hardware: 2 CPU cores, a minute.
Expected: the columns "5-shot LoRA" and so on of configs/README.md, "CIFAR-10". Run here on 2026-11-25, as part of
pipelines/cifar10.py.
"""

import ml_collections

from ..cifar10 import MODEL, dataset

LEARNING_RATES = {"none": 1e-2, "vpt_shallow": 1e-2, "vpt_deep": 1e-2, "adaptformer": 1e-3, "lora": 1e-3}


def get_config(data="cifar10", adapter="none", shots=5, long=False):
    """`long` is for an accelerator: five draws, 400 steps and a grid of learning rates, picked on undrawn images."""
    c = ml_collections.ConfigDict()
    c.stage = "low_shot"
    c.train_for = "400 steps" if long else "30 steps"
    c.eval_every = "100%"
    c.splits = 5 if long else 3
    c.global_batch = c.splits * min(10 * shots, 50)
    c.shots, c.adapter = shots, dict(kind=adapter)
    c.update(dataset(data, crop="shift", shift=4))
    c.model = dict(pool="cls")
    c.from_scratch = dict(model=MODEL)
    c.optim = dict(name="adamw", lr=LEARNING_RATES[adapter], lr_batch=0, warmup="10%", weight_decay=0.01)
    if long:
        c.lr_grid = (0.1, 0.3, 1.0, 3.0)
    return c
