"""Full finetuning on ImageNet-1k of released MAE encoders, the recipe of facebookresearch/mae FINETUNE.md.

python -m mae_pp_jax convert --from=mae:vit_l16 --to=runs/mae_l16
python -m mae_pp_jax train --config=configs/classify/released.py:model=mae:vit_l16 --workdir=DIR --config.init_from.run=runs/mae_l16

Effective batch 1024; learning rate 5e-4 (B) or 1e-3 · batch / 256. MAWS does not print its recipe, so the recipe is MAE's
(for 2B and 6.5B that of H), so far without RandAugment, mixup, cutmix and random erasing. Published top-1: see the
table. Here: not run. Released finetuned models (names that end in _ft_in1k) need no recipe: `evaluate` measures their folder.
"""

import ml_collections

# model → size, input in pixels, published top-1. Here: not run.
RECIPES = {
    "mae_in1k:vit_b16": ("B/16", 224, 83.6),
    "mae_in1k:vit_l16": ("L/16", 224, 85.9),
    "mae_in1k:vit_h14": ("H/14", 224, 86.9),
    "mae_in1k:vit_2b14": ("2B/14", 224, 87.4),
    "mae_in21k:vit_l16": ("L/16", 512, 86.9),
    "mae:vit_b16": ("B/16", 224, 83.5),
    "mae:vit_l16": ("L/16", 224, 86.1),
    "mae:vit_h14": ("H/14", 224, 87.4),
    "mae:vit_2b14": ("2B/14", 224, 87.8),
    "mae:vit_6.5b14": ("6.5B/14", 224, 88.3),
}
# size → epochs, lr, layer decay, drop path
FINETUNE = {"B/16": (100, 5e-4, 0.65, 0.1), "L/16": (50, 1e-3, 0.75, 0.2)}
LARGE = (50, 1e-3, 0.75, 0.3)


def get_config(model="mae:vit_b16"):
    if model not in RECIPES:
        raise ValueError(f"model={model} has no recipe here; known: {', '.join(RECIPES)}")
    size, side, _ = RECIPES[model]
    epochs, lr, layer_decay, drop_path = FINETUNE.get(size, LARGE)
    c = ml_collections.ConfigDict()
    c.stage = "classify"
    c.train_for = f"{epochs} epochs"
    c.global_batch = 1024
    c.log_every, c.eval_every = "100 steps", "1 epochs"
    c.checkpoint = dict(every="2%")
    c.data = dict(name="imagenet2012", image_size=side, crop="random_resized", crop_scale=(0.08, 1.0))
    c.evals = dict(val=dict(split="validation", share=0.875 if side <= 224 else 1.0))
    c.declared = dict(records=1_281_167, classes=1000)
    c.model = dict(size=size, pool="mean", drop_path=drop_path, remat="dots")
    c.optim = dict(lr=lr, warmup="5 epochs", b2=0.999, weight_decay=0.05, min_lr=1e-6)
    c.layer_decay = layer_decay
    c.label_smoothing = 0.1
    return c
