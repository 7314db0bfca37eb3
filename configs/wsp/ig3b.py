"""WSP on billions of images with hashtags, from the encoder of an MAE run (Singh et al. 2023, section 3).

python -m mae_pp_jax train --config=configs/wsp/ig3b.py:size=L/16,data=NAME --workdir=DIR --config.init_from.run=MAE_RUN
python -m mae_pp_jax plan --config=configs/wsp/ig3b.py:size=L/16 --topology=v5e:8x8

One epoch is 5 billion resampled images of 3 billion, with 28 thousand hashtags. Effective batch 8192; learning rate
4e-4, absolute at this batch. Batch, rate, decay 0.1 and clipping at 1.0 are what is known of SWAG's recipe, which the
paper takes over. Hardware: the TPU slice below, settings found by `plan --search`; 2B/14 fills 86% of its memory, the
others at most 52% (mae_pp_jax/planning/README.md). Expected, linear probe on ImageNet-1k (MAWS repository): B 83.3,
L 86.1, H 87.5, 2B 88.1, 6.5B 88.6 top-1. Here: planned, not run.
"""

import ml_collections

# size → TPU slice it is planned for, chips that share the parameters, microbatches, what the backward pass recomputes
SLICES = {
    "B/16": dict(slice="v5e:8x8", fsdp=8, microbatches=1, remat="full"),
    "L/16": dict(slice="v5e:8x8", fsdp=8, microbatches=2, remat="dots"),
    "H/14": dict(slice="v5e:16x16", fsdp=16, microbatches=1, remat="dots"),
    "2B/14": dict(slice="v5p:4x4x4", fsdp=1, microbatches=1, remat="dots"),
    "6.5B/14": dict(slice="v5p:4x4x8", fsdp=32, microbatches=1, remat="dots"),
}


def get_config(size="L/16", data="ig3b"):
    if size not in SLICES:
        raise ValueError(f"size={size} has no planned slice; known: {', '.join(SLICES)}")
    fit = SLICES[size]
    c = ml_collections.ConfigDict()
    c.stage = "wsp"
    c.train_for = "1 epochs"
    c.global_batch, c.microbatches = 8192, fit["microbatches"]
    c.log_every, c.eval_every = "100 steps", "5%"
    c.checkpoint = dict(every="1%")
    c.data = dict(name=data, image_size=224, crop="random_resized", crop_scale=(0.08, 1.0))
    c.declared = dict(records=5_000_000_000, hashtags=28_000)
    c.model = dict(size=size, positions="learned", remat=fit["remat"])
    c.optim = dict(lr=4e-4, lr_batch=8192, warmup="5%", weight_decay=0.1, clip=1.0)
    c.mesh = dict(data=-1, fsdp=fit["fsdp"])
    return c
