"""The paper's central comparison in minutes on two CPU cores: what are MAE, WSP and MAE→WSP worth for what comes after?

Four initialisations {random, MAE, WSP, MAE→WSP} × {finetune, linear, 5-shot}, then a report.

python -m mae_pp_jax pipeline --config=configs/pipelines/demo.py --workdir=runs/demo
python -m mae_pp_jax pipeline --config=configs/pipelines/demo.py:data=cifar10 --workdir=runs/demo-cifar10
python -m mae_pp_jax pipeline --config=configs/pipelines/demo.py:data=/my/photos --workdir=runs/photos

Batches and learning rates are those of configs/*/digits.py. Hardware: 2 CPU cores, 6 to 10 minutes. Expected: the table
of README.md. Run here on 2026-11-25; on other data than the digits: not run to the end.
"""

import ml_collections

from .comparison import LABELS, stage

DIGITS = "digits_hashtags"
# Images that the stages see on the 1,437 digits; other data gets as many, however large it is.
IMAGES = {"mae": 287_400, "wsp": 86_220, "classify": 43_110, "linear": 21_555}


def get_config(data=DIGITS, image_size=32, patch=4, linear_seeds=3):
    """`image_size` and `patch` are for other data than the digits, which are 8 pixels wide."""
    c = ml_collections.ConfigDict()
    c.title = "MAE, WSP and MAE→WSP as starting points"
    c.data = data
    own, crop = {name: {} for name in ("low_shot", *IMAGES)}, {}
    if data != DIGITS:
        # The same recipe and number of images seen on other data; its hashtags are simulated from the labels.
        common = {
            "data.name": data,
            "data.image_size": image_size,
            "data.hashtags": "simulated",
            "data.flip": True,
            "eval_every": "50%",
            "model.size": f"Ti/{patch}",
        }
        own = {"low_shot": common | {"small_classes": "all"}} | {
            name: common | {"train_for": f"{n} images"} for name, n in IMAGES.items()
        }
        crop = {"data.crop": "random_resized"}
    c.stages = [
        stage("mae", "mae", own["mae"] | crop),
        stage("wsp", "wsp", own["wsp"] | crop),
        stage("mae_wsp", "wsp", own["wsp"] | crop, init="mae"),
    ]
    for init, label in LABELS.items():
        for seed in range(linear_seeds):
            row = dict(init=label, task="linear")
            c.stages += [stage(f"linear_{init}_{seed}", "linear", own["linear"] | {"seed": seed}, init, row)]
        c.stages += [
            stage(f"5shot_{init}", "low_shot", own["low_shot"], init, dict(init=label, task="5-shot")),
            stage(f"finetune_{init}", "classify", own["classify"] | crop, init, dict(init=label, task="finetune")),
        ]
    return c
