"""Full finetuning on your own labels: a folder ROOT/CLASS/ of images, or any dataset with classes.

python -m mae_pp_jax train --config=configs/classify/folder.py:data=/my/photos,size=B/16,init=RUN --workdir=DIR
python -m mae_pp_jax train --config=configs/classify/folder.py:data=/my/photos,init=maws:vit_b16,image_size=224 --workdir=DIR

A folder without splits is tested on a fifth of each class. Effective batch 256, and any other: the learning rate is
MAE's, 5e-4 (B) or 1e-3 · batch / 256; what regularises is as on ImageNet-1k. Hardware: what your data needs; `plan` says
whether a slice of TPUs fits (state --config.declared.records and .classes). Expected: none published. Here: not run.
"""

from ..finetuning import finetuning


def get_config(data="digits_hashtags", size="", init="", image_size=0, batch=256, epochs=0):
    """`epochs` are those of the size when not given: 100 for B and smaller, 50 for larger."""
    c, crop = finetuning(size, init, image_size)
    c.data.name = data
    c.evals = dict(test=crop)
    c.global_batch = batch
    c.log_every, c.eval_every, c.checkpoint.every = "1%", "5%", "5%"
    if epochs:
        c.train_for = f"{epochs} epochs"
    c.optim.warmup = "5%"
    return c
