"""Linear probes on ImageNet-1k of released models at 224 pixels, the protocol of facebookresearch/mae main_linprobe.py.

python -m mae_pp_jax convert --from=maws:vit_h14 --to=runs/maws_h14
python -m mae_pp_jax train --config=configs/linear/released.py:model=maws:vit_h14 --workdir=DIR --config.init_from.run=runs/maws_h14

Effective batch 16384; learning rate 0.1 · batch / 256. MAWS does not say how its linear figures were measured, so the
recipe is MAE's. Published top-1 (MAWS README; none for SWAG at 224 there): see the table. Here: not run.
"""

import ml_collections

# model → size, epochs, published top-1. Here: not run.
RECIPES = {
    "maws:vit_b16": ("B/16", 90, 83.3),
    "maws:vit_l16": ("L/16", 50, 86.1),
    "maws:vit_h14": ("H/14", 50, 87.5),
    "maws:vit_2b14": ("2B/14", 50, 88.1),
    "maws:vit_6.5b14": ("6.5B/14", 50, 88.6),
    "swag:vit_b16": ("B/16", 90, None),
    "swag:vit_l16": ("L/16", 50, None),
    "swag:vit_h14": ("H/14", 50, None),
}


def get_config(model="maws:vit_b16"):
    if model not in RECIPES:
        raise ValueError(f"model={model} has no recipe here; known: {', '.join(RECIPES)}")
    size, epochs, _ = RECIPES[model]
    c = ml_collections.ConfigDict()
    c.stage = "linear"
    c.train_for = f"{epochs} epochs"
    c.global_batch = 16384
    c.log_every, c.eval_every = "10 steps", "5 epochs"
    c.checkpoint = dict(every="10%")
    c.data = dict(name="imagenet2012", image_size=224, crop="random_resized", crop_scale=(0.08, 1.0))
    c.evals = dict(val=dict(split="validation", share=0.875))
    c.declared = dict(records=1_281_167, classes=1000)
    c.model = dict(size=size, pool="cls")
    c.optim = dict(name="lars", lr=0.1, warmup="10 epochs", weight_decay=0.0)
    return c
