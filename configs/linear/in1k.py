"""Linear probe on ImageNet-1k, the recipe of facebookresearch/mae main_linprobe.py.

python -m mae_pp_jax train --config=configs/linear/in1k.py:size=B/16 --workdir=DIR --config.init_from.run=MAE_RUN

Effective batch 16384; LARS, learning rate 0.1 · batch / 256 = 6.4, no decay; 90 epochs for B, 50 for L and H.
Expected (MAE repository): ViT-B 67.8, ViT-L 76.0, ViT-H 77.2 top-1; MAWS ViT-B 83.3 by its own protocol. Here: not run.
"""

import ml_collections


def get_config(size="B/16"):
    c = ml_collections.ConfigDict()
    c.stage = "linear"
    c.train_for = "90 epochs" if size.startswith("B/") else "50 epochs"
    c.global_batch = 16384
    c.log_every, c.eval_every = "20 steps", "5 epochs"
    c.data = dict(name="imagenet2012", image_size=224, crop="random_resized", crop_scale=(0.08, 1.0))
    c.evals = dict(val=dict(split="validation", share=0.875))
    c.declared = dict(records=1_281_167, classes=1000)
    c.model = dict(size=size, pool="cls")
    c.optim = dict(name="lars", lr=0.1, warmup="10 epochs", b1=0.9, weight_decay=0.0)
    return c
