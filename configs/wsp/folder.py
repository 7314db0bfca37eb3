"""WSP on your own data: the hashtags of a dataset of `data build`, or simulated from the classes of a folder.

python -m mae_pp_jax train --config=configs/wsp/folder.py:data=photos,vocabulary=photos_tags.json --workdir=DIR
python -m mae_pp_jax train --config=configs/wsp/folder.py:data=/my/photos --workdir=DIR --config.init_from.run=MAE_RUN

Effective batch 1024, and any other: the learning rate is absolute, 4e-4 from B on and 1e-3 for Ti and S. 4e-4, decay 0.1
and clipping at 1.0 are what is known of SWAG's recipe at batch 8192; that the rate stays as it is at smaller batches is
our choice. 1e-3 is measured: on drawings at batch 64 (mae_pp_jax/data/README.md) a model 64 wide has after 4 epochs a
test loss of 4.93 by 1e-3 and 5.11 by 4e-4; by 4e-4 · 64 / 8192 it has 5.67 after one epoch, and chance is 5.68.
Hardware: what your data needs; `data hashtags` prints a command that fits data and machine. Expected: none published;
the run on drawings, in full.
"""

import ml_collections


def get_config(data="digits_hashtags", size="B/16", image_size=224, vocabulary="", batch=1024):
    c = ml_collections.ConfigDict()
    c.stage = "wsp"
    c.train_for = "20 epochs"
    c.global_batch = batch
    c.data = dict(name=data, image_size=image_size, crop="random_resized", crop_scale=(0.2, 1.0))
    c.data.update(dict(vocabulary=vocabulary) if vocabulary else dict(hashtags="simulated"))
    c.model = dict(size=size, remat="dots")
    small = size.partition("/")[0] in ("Ti", "S")
    c.optim = dict(lr=1e-3 if small else 4e-4, lr_batch=0, warmup="5%", weight_decay=0.1, clip=1.0)
    return c
