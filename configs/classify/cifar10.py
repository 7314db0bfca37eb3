"""Full finetuning of a small ViT on CIFAR-10: patches of 4 of its 32 pixels.

python -m mae_pp_jax train --config=configs/classify/cifar10.py:init=RUN --workdir=DIR
python -m mae_pp_jax train --config=configs/classify/cifar10.py:size=S/4,data=/path/to/cifar10 --workdir=DIR

Effective batch 256; learning rate 1e-3, absolute at this batch. Images are moved by up to 4 pixels and mirrored, as is
usual for CIFAR, and regularised as on ImageNet; all of it our choice. `data` may be a folder ROOT/{train,test}/CLASS/.
Hardware: one accelerator, or a CPU for models narrower than Ti/4. Expected: none published. Here: not run.
"""

import ml_collections

from ..cifar10 import dataset
from ..finetuning import RANDAUGMENT, REGULARISED


def get_config(data="cifar10", size="", init="", epochs=100):
    """`size` is Ti/4 when not given, or as in the run `init`."""
    c = ml_collections.ConfigDict(dict(REGULARISED, stage="classify"))
    c.train_for = f"{epochs} epochs"
    c.global_batch = 256
    c.init_from = dict(run=init)
    c.update(dataset(data, crop="shift", shift=4, randaugment=RANDAUGMENT))
    c.model = dict(pool="mean", drop_path=0.1, **(dict(size=size) if size else {}))
    c.from_scratch = dict(model=dict(size="Ti/4"))
    c.optim = dict(lr=1e-3, lr_batch=256, warmup="5%", b2=0.999, weight_decay=0.05, min_lr=1e-6)
    c.layer_decay = 0.75
    return c
