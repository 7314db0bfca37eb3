"""Full finetuning on Food-101 (TFDS: 75,750 training images and 25,250 of validation, 101 classes).

python -m mae_pp_jax train --config=configs/classify/food101.py:size=B/16,init=RUN --workdir=DIR

Effective batch 1024, learning rate 5e-4 (B) or 1e-3 · batch / 256: MAE's for ImageNet-1k. Hardware: an accelerator;
`plan` says how many chips. Expected: none published by this recipe. Here: not run.
"""

from ..finetuning import finetuning


def get_config(data="food101", size="", init="", image_size=0):
    c, crop = finetuning(size, init, image_size)
    c.data.name = data
    c.evals = dict(val=dict(crop, split="validation"))
    c.declared = dict(records=75_750, classes=101)
    return c
