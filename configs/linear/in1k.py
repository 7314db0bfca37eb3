"""Linear probe on ImageNet-1k of an MAE or WSP run, or of a released model: facebookresearch/mae main_linprobe.py.

python -m mae_pp_jax train --config=configs/linear/in1k.py:size=B/16 --workdir=DIR --config.init_from.run=MAE_RUN

python -m mae_pp_jax convert --from=maws:vit_h14 --to=RUN
python -m mae_pp_jax train --config=configs/linear/in1k.py:model=maws:vit_h14 --workdir=DIR --config.init_from.run=RUN

Effective batch 16384; LARS, learning rate 0.1 · batch / 256 = 6.4, no decay; 90 epochs for B, 50 for larger models.
Hardware: an accelerator; `plan` says how many chips, none has been tried.
Expected top-1: MAE on ImageNet-1k ViT-B 67.8, ViT-L 76.0, ViT-H 77.2 (MAE repository); for MAWS, which does not say
how its linear figures were measured, see mae_pp_jax/interop/README.md. Here: not run.
"""

import ml_collections

from ..imagenet import DATA, DECLARED, EVALS

# released model → size
RELEASED = {
    "maws:vit_b16": "B/16",
    "maws:vit_l16": "L/16",
    "maws:vit_h14": "H/14",
    "maws:vit_2b14": "2B/14",
    "maws:vit_6.5b14": "6.5B/14",
    "swag:vit_b16": "B/16",
    "swag:vit_l16": "L/16",
    "swag:vit_h14": "H/14",
}


def get_config(size="", model=""):
    """`size` is any ViT's (B/16 when not given); `model`, one of RELEASED, fixes it."""
    if size and model:
        raise ValueError(f"size={size} and model={model}: give one of them; a released model has its size")
    if model and model not in RELEASED:
        raise ValueError(f"model={model} has no recipe here; known: {', '.join(RELEASED)}")
    size = RELEASED[model] if model else size or "B/16"
    c = ml_collections.ConfigDict()
    c.stage = "linear"
    c.train_for = "90 epochs" if size.startswith("B/") else "50 epochs"
    c.global_batch = 16384
    c.log_every, c.eval_every = "20 steps", "5 epochs"
    c.data = dict(DATA, crop="random_resized_once", crop_scale=(0.08, 1.0))
    c.evals, c.declared = EVALS, DECLARED
    c.model = dict(size=size, pool="cls")
    c.optim = dict(name="lars", lr=0.1, warmup="10 epochs", weight_decay=0.0)
    return c
