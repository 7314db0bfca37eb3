"""Full finetuning on ImageNet-1k, from facebookresearch/mae FINETUNE.md, so far without its RandAugment, mixup, cutmix
and random erasing.

python -m mae_pp_jax train --config=configs/classify/in1k.py:size=B/16 --workdir=DIR --config.init_from.run=MAE_RUN

Effective batch 1024; learning rate 5e-4 (B) or 1e-3 (L, H) · batch / 256. With the missing augmentations the MAE
repository reports ViT-B 83.6, ViT-L 85.9, ViT-H 86.9 top-1. Here: not run.
"""

import ml_collections

# size → epochs, lr, layer decay, drop path
RECIPES = {
    "B/16": (100, 5e-4, 0.65, 0.1),
    "L/16": (50, 1e-3, 0.75, 0.2),
    "H/14": (50, 1e-3, 0.75, 0.3),
}


def get_config(size="B/16"):
    if size not in RECIPES:
        raise ValueError(f"size={size} has no published recipe; known: {', '.join(RECIPES)}")
    epochs, lr, layer_decay, drop_path = RECIPES[size]
    c = ml_collections.ConfigDict()
    c.stage = "classify"
    c.train_for = f"{epochs} epochs"
    c.global_batch = 1024
    c.log_every, c.eval_every = "100 steps", "1 epochs"
    c.checkpoint = dict(every="2%")
    c.data = dict(name="imagenet2012", image_size=224, crop="random_resized", crop_scale=(0.08, 1.0))
    c.evals = dict(val=dict(split="validation", share=0.875))
    c.declared = dict(records=1_281_167, classes=1000)
    c.model = dict(size=size, pool="mean", drop_path=drop_path, remat="dots")
    c.optim = dict(lr=lr, warmup="5 epochs", b2=0.999, weight_decay=0.05, min_lr=1e-6)
    c.layer_decay = layer_decay
    c.label_smoothing = 0.1
    return c
