"""MAE pre-pretraining on billions of images, no labels (Singh et al. 2023, section 3): one epoch of MAE's own recipe.

python -m mae_pp_jax train --config=configs/mae/ig3b.py:size=L/16,data=NAME --workdir=DIR
python -m mae_pp_jax plan --config=configs/mae/ig3b.py:size=L/16 --topology=v5e:8x8

One epoch is 5 billion resampled images of 3 billion. Effective batch 4096; learning rate 1.5e-4 · batch / 256 = 2.4e-3.
The paper's warmup for a single epoch is not public; 2.5% is the proportion of MAE's 40 epochs of 1600. Hardware: the
TPU slice below, settings found by `plan --search`; no size fills half of its memory (mae_pp_jax/planning/README.md).
Expected after finetuning on ImageNet-1k (MAWS repository): B 83.5, L 86.1, H 87.4, 2B 87.8, 6.5B 88.3 top-1.
Here: planned, not run.
"""

import ml_collections

# size → TPU slice it is planned for, chips that share the parameters, microbatches, what the backward pass recomputes
SLICES = {
    "B/16": dict(slice="v5e:8x8", fsdp=8, microbatches=1, remat="dots"),
    "L/16": dict(slice="v5e:8x8", fsdp=8, microbatches=1, remat="dots"),
    "H/14": dict(slice="v5e:8x8", fsdp=8, microbatches=1, remat="dots"),
    "2B/14": dict(slice="v5p:4x4x4", fsdp=16, microbatches=1, remat="dots"),
    "6.5B/14": dict(slice="v5p:4x4x8", fsdp=32, microbatches=1, remat="dots"),
}


def get_config(size="L/16", data="ig3b"):
    if size not in SLICES:
        raise ValueError(f"size={size} has no planned slice; known: {', '.join(SLICES)}")
    fit = SLICES[size]
    c = ml_collections.ConfigDict()
    c.stage = "mae"
    c.train_for = "1 epochs"
    c.global_batch, c.microbatches = 4096, fit["microbatches"]
    c.log_every, c.eval_every = "100 steps", "5%"
    c.checkpoint = dict(every="1%")
    c.data = dict(name=data, image_size=224, crop="random_resized", crop_scale=(0.2, 1.0))
    c.declared = dict(records=5_000_000_000)
    c.model = dict(size=size, positions="sincos", remat=fit["remat"])
    c.optim = dict(lr=1.5e-4, warmup="2.5%", b2=0.95, weight_decay=0.05)
    c.mesh = dict(data=-1, fsdp=fit["fsdp"])
    return c
