"""k labelled images per class of ImageNet-1k on a frozen encoder, five draws; a linear head, with or without adapters.

python -m mae_pp_jax train --config=configs/low_shot/in1k.py:size=B/16,shots=5 --workdir=DIR --config.init_from.run=RUN
python -m mae_pp_jax train --config=configs/low_shot/in1k.py:size=B/16,shots=5,adapter=vpt_deep --workdir=DIR \
  --config.init_from.run=RUN

Batch of a draw, learning rate (times batch of a draw / 256), warm-up of 100 epochs, decay:
  none         256, 0.1, 10%, 1e-4: ours
  vpt_…        128, a grid of 50 … 0.05 (VPT's), 10 epochs, 1e-4; 5 tokens
  adaptformer  256, 0.1, 20 epochs, 0; 64 channels, dropout 0.1, scale 0.1 (AdaptFormer; the batch is ours)
  lora         256, AdamW, a grid of 3e-3 … 1e-4 absolute, 10 epochs, 0.01; rank 8 on q and v: ours
The paper's protocol (VPT; hyper-parameters in its appendix) is not public. Its draws are its own; splits_from=DIR of
the stage reads public ones. VPT's images are resized to 256 and cut to 224 at random, here they are random resized
crops of at least 0.2 of the area. Hardware: an accelerator, none has been tried; `plan` says how many chips (vpt_deep
of B/16 with --config.microbatches=16: 4.5 of 15.75 GiB on each of eight v5e chips). Published with the paper's
protocol: MAWS ViT-H 79.8, ViT-2B 81.5 top-1 at 5 shots. Here: not run.
"""

import ml_collections

from ..imagenet import DATA, DECLARED, EVALS

# VPT's own grid is lr / 256 in these, times the batch.
VPT_GRID = (50.0, 25.0, 10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05)
SGD = dict(name="sgd", b1=0.9)


def get_config(size="B/16", shots=5, adapter="none"):
    c = ml_collections.ConfigDict()
    c.stage = "low_shot"
    c.train_for = "100 epochs"
    c.global_batch = 1280
    c.shots, c.splits = shots, 5
    c.log_every, c.eval_every = "1%", "25%"
    c.data = dict(DATA, crop_scale=(0.2, 1.0))
    c.evals, c.declared = EVALS, DECLARED
    c.model = dict(size=size, pool="cls")
    if adapter == "none":
        c.optim = dict(SGD, lr=0.1, warmup="10%", weight_decay=1e-4)
        return c
    c.adapter, c.eval_every = dict(kind=adapter), "50%"
    if adapter in ("vpt_shallow", "vpt_deep"):
        c.global_batch = 640
        c.optim = dict(SGD, lr=1.0, warmup="10 epochs", weight_decay=1e-4)
        c.lr_grid = VPT_GRID
    elif adapter == "adaptformer":
        c.optim = dict(SGD, lr=0.1, warmup="20 epochs", weight_decay=0.0)
    elif adapter == "lora":
        c.optim = dict(name="adamw", b2=0.999, lr=1e-3, lr_batch=0, warmup="10 epochs", weight_decay=0.01)
        c.lr_grid = (3.0, 1.0, 0.3, 0.1)
    else:
        raise ValueError(f"adapter={adapter} is not one of none, vpt_shallow, vpt_deep, adaptformer, lora")
    return c
