"""MAE on ImageNet-1k, the recipe of facebookresearch/mae PRETRAIN.md.

python -m mae_pp_jax train --config=configs/mae/in1k.py:size=L/16 --workdir=DIR --config.mesh.fsdp=8

Effective batch 4096; learning rate 1.5e-4 · batch / 256 = 2.4e-3; 1600 epochs in the paper, 800 in the repository.
Hardware: an accelerator; `plan` says how many chips, none has been tried. Expected after finetuning (MAE repository):
ViT-B 83.6, ViT-L 85.9, ViT-H 86.9 top-1. Here: not run.
"""

import ml_collections

from ..imagenet import DATA, RECORDS


def get_config(size="B/16", epochs=800):
    c = ml_collections.ConfigDict()
    c.stage = "mae"
    c.train_for = f"{epochs} epochs"
    c.global_batch = 4096
    c.log_every, c.eval_every = "100 steps", "5%"
    c.checkpoint = dict(every="1%")
    c.data = dict(DATA, crop_scale=(0.2, 1.0))
    c.evals = dict(val=dict(split="validation"))
    c.declared = dict(records=RECORDS)
    c.model = dict(size=size, positions="sincos", remat="full")
    c.optim = dict(lr=1.5e-4, warmup="40 epochs", b2=0.95, weight_decay=0.05)
    return c
