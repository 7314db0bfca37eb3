"""k labelled images a class of ImageNet-1k on frozen features, five draws; a linear head.

python -m mae_pp_jax train --config=configs/low_shot/in1k.py:size=B/16,shots=5 --workdir=DIR --config.init_from.run=RUN

The paper's protocol (VPT adapters, hyper-parameters in its appendix) is not public; this is ours. Published with it:
MAWS ViT-H 79.8, ViT-2B 81.5 top-1 at 5 shots. Here: not run.
"""

import ml_collections


def get_config(size="B/16", shots=5):
    c = ml_collections.ConfigDict()
    c.stage = "low_shot"
    c.train_for = "100 epochs"
    c.global_batch = 1280
    c.shots, c.splits = shots, 5
    c.log_every, c.eval_every = "1%", "25%"
    c.data = dict(name="imagenet2012", image_size=224, crop="random_resized", crop_scale=(0.2, 1.0))
    c.evals = dict(val=dict(split="validation", share=0.875))
    c.declared = dict(records=1_281_167, classes=1000)
    c.model = dict(size=size, pool="cls")
    c.optim = dict(name="sgd", lr=0.1, warmup="10%", b1=0.9, weight_decay=1e-4)
    return c
