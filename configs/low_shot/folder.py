"""k labelled images per class of your own folder ROOT/CLASS/ on a frozen encoder, with or without adapters, five draws.

python -m mae_pp_jax train --config=configs/low_shot/folder.py:data=/my/photos,adapter=lora --workdir=DIR \
  --config.init_from.run=maws:vit_b16

Size and input are those of the encoder. Batch of a draw 8 · shots, at most 64; 200 updates, whatever the number of
classes. AdamW; the learning rate is absolute, one for each kind of adapter, without a grid, which would need undrawn
images to choose by. A class with fewer images than shots is refused (--config.small_classes=all takes what it has).
Hardware: CPU cores for a small encoder, an accelerator for B/16. Expected: none published. Here, LoRA alone: 60.3 ± 2.0
on the digits of notebooks/03_transfer.ipynb, five per class, from configs/mae/digits.py of 60 epochs; 2026-11-25.
"""

import ml_collections

from .cifar10 import LEARNING_RATES


def get_config(data="digits_hashtags", adapter="none", shots=5):
    if adapter not in LEARNING_RATES:
        raise ValueError(f"adapter={adapter} is not one of {', '.join(LEARNING_RATES)}")
    c = ml_collections.ConfigDict()
    c.stage = "low_shot"
    c.train_for = "200 steps"
    c.log_every, c.eval_every = "5%", "100%"
    c.shots, c.splits = shots, 5
    c.global_batch = c.splits * min(8 * shots, 64)
    c.adapter = dict(kind=adapter)
    c.data = dict(name=data, crop="random_resized", crop_scale=(0.4, 1.0))
    c.evals = dict(test=dict(crop="center", share=0.875, resize="bicubic"))
    c.model = dict(pool="cls")
    c.optim = dict(name="adamw", lr=LEARNING_RATES[adapter], lr_batch=0, warmup="10%", weight_decay=0.01)
    return c
