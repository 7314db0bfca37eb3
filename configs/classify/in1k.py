"""Full finetuning on ImageNet-1k of an MAE or WSP run, or of a released MAE encoder: facebookresearch/mae FINETUNE.md.

python -m mae_pp_jax train --config=configs/classify/in1k.py:size=B/16 --workdir=DIR --config.init_from.run=MAE_RUN

python -m mae_pp_jax convert --from=mae:vit_l16 --to=RUN
python -m mae_pp_jax train --config=configs/classify/in1k.py:model=mae:vit_l16 --workdir=DIR --config.init_from.run=RUN

Effective batch 1024; learning rate 5e-4 (B) or 1e-3 · batch / 256. RandAugment, mixup, cutmix and random erasing of
the published recipe are not there yet. Hardware: an accelerator; `plan` says how many chips, none has been tried.
Expected with these augmentations, top-1: MAE on ImageNet-1k ViT-B 83.6, ViT-L 85.9, ViT-H 86.9 (MAE repository); for
the released encoders see mae_pp_jax/interop/README.md. Here: not run.
Released models that are finetuned already (names that end in _ft_in1k) need no recipe: `evaluate` measures them.
"""

import ml_collections

from ..imagenet import DATA, DECLARED, EVALS

# size → epochs, lr, layer decay, drop path; 2B and 6.5B, which MAE does not have, as H
FINETUNE = {"B/16": (100, 5e-4, 0.65, 0.1), "L/16": (50, 1e-3, 0.75, 0.2), "H/14": (50, 1e-3, 0.75, 0.3)}
FINETUNE |= {"2B/14": FINETUNE["H/14"], "6.5B/14": FINETUNE["H/14"]}
# released encoder → size, input in pixels
RELEASED = {
    "mae_in1k:vit_b16": ("B/16", 224),
    "mae_in1k:vit_l16": ("L/16", 224),
    "mae_in1k:vit_h14": ("H/14", 224),
    "mae_in1k:vit_2b14": ("2B/14", 224),
    "mae_in21k:vit_l16": ("L/16", 512),
    "mae:vit_b16": ("B/16", 224),
    "mae:vit_l16": ("L/16", 224),
    "mae:vit_h14": ("H/14", 224),
    "mae:vit_2b14": ("2B/14", 224),
    "mae:vit_6.5b14": ("6.5B/14", 224),
}


def get_config(size="", model=""):
    """`size` is one of FINETUNE (B/16 when not given); `model`, one of RELEASED, fixes size and input."""
    if size and model:
        raise ValueError(f"size={size} and model={model}: give one of them; a released model has its size")
    if model and model not in RELEASED:
        raise ValueError(f"model={model} has no recipe here; known: {', '.join(RELEASED)}")
    size, side = RELEASED[model] if model else (size or "B/16", 224)
    if size not in FINETUNE:
        raise ValueError(f"size={size} has no recipe here; known: {', '.join(FINETUNE)}")
    epochs, lr, layer_decay, drop_path = FINETUNE[size]
    c = ml_collections.ConfigDict()
    c.stage = "classify"
    c.train_for = f"{epochs} epochs"
    c.global_batch = 1024
    c.log_every, c.eval_every = "100 steps", "1 epochs"
    c.checkpoint = dict(every="2%")
    c.data = dict(DATA, image_size=side, crop_scale=(0.08, 1.0))
    c.evals = EVALS if side <= 224 else dict(val=dict(EVALS["val"], share=1.0))
    c.declared = DECLARED
    c.model = dict(size=size, pool="mean", drop_path=drop_path, remat="dots")
    c.optim = dict(lr=lr, warmup="5 epochs", b2=0.999, weight_decay=0.05, min_lr=1e-6)
    c.layer_decay = layer_decay
    c.label_smoothing = 0.1
    return c
