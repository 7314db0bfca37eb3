"""Full finetuning on iNaturalist 2018, which you bring: TFDS does not have it.

python -m mae_pp_jax train --config=configs/classify/inat18.py:data=/data/inat18,size=L/16,init=RUN --workdir=DIR

`data` is a folder ROOT/{train,val}/CLASS/ (or a dataset that `data build --from=ROOT` makes of it, with
--config.evals.val.split=val) of 8,142 classes, 437,513 training images and 24,426 of validation. Effective batch 1024,
learning rate 5e-4 (B) or 1e-3 · batch / 256: MAE's for ImageNet-1k, as no others are public. Hardware: an accelerator;
`plan` says how many chips. Expected: none published by this recipe. Here: not run.
"""

from ..finetuning import finetuning


def get_config(data="inat18", size="", init="", image_size=0):
    c, crop = finetuning(size, init, image_size)
    c.data.name = data
    c.evals = dict(val=dict(crop, split="test"))
    c.declared = dict(records=437_513, classes=8142)
    return c
