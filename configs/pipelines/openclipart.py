"""MAE, WSP and MAE→WSP on drawings with the real tags of their authors (Open Clip Art Library 0.18, 64 × 64 pixels).

{random, MAE, WSP, MAE→WSP} × {linear, 5-shot} on the 22 categories, tag mAP of the two that know tags, three seeds.
First make the dataset and its vocabulary (mae_pp_jax/data/README.md, "Bring your data"), then

python -m mae_pp_jax pipeline --config=configs/pipelines/openclipart.py --workdir=runs/openclipart

Small enough for two CPU cores; `width`, `depth` and `length` (a factor on all lengths) suit it to an accelerator.
Batches and learning rates are those of configs/*/digits.py. Hardware: 2 CPU cores, 55 minutes. Expected: the table of
mae_pp_jax/data/README.md. Run here at full length before 2026-11-25, with other draws for 5-shot.
"""

import ml_collections

from .comparison import LABELS, stage

IMAGES = {"mae": 200_000, "wsp": 60_000, "linear": 30_000}  # seen by a stage at length 1


def get_config(data="openclipart", vocabulary="openclipart_tags.json", width=96, depth=4, heads=4, seeds=3, length=1.0):
    c = ml_collections.ConfigDict()
    c.title = "MAE, WSP and MAE→WSP on drawings with real tags"
    c.data = data
    common = {
        "data.name": data,
        "data.image_size": 64,
        "data.flip": True,
        "model.size": "Ti/8",
        "model.width": width,
        "model.depth": depth,
        "model.heads": heads,
        "eval_every": "50%",
    }
    crop = {"data.crop": "random_resized", "data.crop_scale": (0.4, 1.0)}
    tags = {"data.vocabulary": vocabulary, **crop}
    own = {name: common | {"train_for": f"{round(n * length)} images"} for name, n in IMAGES.items()}
    few = common | {"small_classes": "all"}
    c.stages = []
    for n in range(seeds):
        seed, mae = {"seed": n}, f"mae_{n}"
        c.stages += [
            stage(mae, "mae", own["mae"] | seed | crop),
            stage(f"wsp_{n}", "wsp", own["wsp"] | seed | tags, row=dict(init="WSP", task="tag mAP")),
            stage(f"mae_wsp_{n}", "wsp", own["wsp"] | seed | tags, mae, dict(init="MAE→WSP", task="tag mAP")),
        ]
        for name, label in LABELS.items():
            init = "random" if name == "random" else f"{name}_{n}"
            c.stages += [
                stage(f"linear_{name}_{n}", "linear", own["linear"] | seed, init, dict(init=label, task="linear")),
                stage(f"5shot_{name}_{n}", "low_shot", few | seed, init, dict(init=label, task="5-shot")),
            ]
    return c
