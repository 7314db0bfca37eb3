"""WSP on your own data: the hashtags of a dataset of `data build`, or simulated from the classes of a folder.

python -m mae_pp_jax train --config=configs/wsp/folder.py:data=photos,vocabulary=photos_tags.json --workdir=DIR
python -m mae_pp_jax train --config=configs/wsp/folder.py:data=/my/photos --workdir=DIR --config.init_from.run=MAE_RUN

Effective batch 1024; learning rate 4e-4 · batch / 8192 = 5e-5. Batch 8192 with 4e-4, decay 0.1 and clipping at 1.0 are
what is known of SWAG's recipe. Hardware: what your data needs; it trains on 2 CPU cores with a small model and images.
Expected: none published. Here: run for 20 steps on drawings (mae_pp_jax/data/README.md); at full length: not run.
"""

import ml_collections


def get_config(data="digits_hashtags", size="B/16", image_size=224, vocabulary=""):
    c = ml_collections.ConfigDict()
    c.stage = "wsp"
    c.train_for = "20 epochs"
    c.global_batch = 1024
    c.data = dict(name=data, image_size=image_size, crop="random_resized", crop_scale=(0.2, 1.0))
    c.data.update(dict(vocabulary=vocabulary) if vocabulary else dict(hashtags="simulated"))
    c.model = dict(size=size, remat="dots")
    c.optim = dict(lr=4e-4, lr_batch=8192, warmup="5%", weight_decay=0.1, clip=1.0)
    return c
