"""k labelled images per class of ImageNet-1k on frozen features, five draws; a linear head.

python -m mae_pp_jax train --config=configs/low_shot/in1k.py:size=B/16,shots=5 --workdir=DIR --config.init_from.run=RUN

Effective batch 1280, 256 per draw; learning rate 0.1 · batch of a draw / 256 = 0.1. The paper's protocol (VPT adapters,
hyper-parameters in its appendix) is not public; this is ours. Hardware: an accelerator; `plan` says how many chips,
none has been tried. Published with the paper's protocol: MAWS ViT-H 79.8, ViT-2B 81.5 top-1 at 5 shots. Here: not run.
"""

import ml_collections

from ..imagenet import DATA, DECLARED, EVALS


def get_config(size="B/16", shots=5):
    c = ml_collections.ConfigDict()
    c.stage = "low_shot"
    c.train_for = "100 epochs"
    c.global_batch = 1280
    c.shots, c.splits = shots, 5
    c.log_every, c.eval_every = "1%", "25%"
    c.data = dict(DATA, crop_scale=(0.2, 1.0))
    c.evals, c.declared = EVALS, DECLARED
    c.model = dict(size=size, pool="cls")
    c.optim = dict(name="sgd", lr=0.1, warmup="10%", b1=0.9, weight_decay=1e-4)
    return c
