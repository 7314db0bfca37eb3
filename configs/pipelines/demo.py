"""The paper's central comparison in minutes on two CPU cores: what are MAE, WSP and MAE→WSP worth for what comes after?

Four initialisations {random, MAE, WSP, MAE→WSP} × {finetune, linear, 5-shot}, then a report.

python -m mae_pp_jax pipeline --config=configs/pipelines/demo.py --workdir=runs/demo
python -m mae_pp_jax pipeline --config=configs/pipelines/demo.py:data=cifar10 --workdir=runs/demo-cifar10
python -m mae_pp_jax pipeline --config=configs/pipelines/demo.py:data=/my/photos --workdir=runs/photos
"""

import ml_collections

LABELS = {"random": "random", "mae": "MAE", "wsp": "WSP", "mae_wsp": "MAE→WSP"}
DIGITS = "digits_hashtags"
# Images that the stages see on the 1,437 digits; other data gets as many, however large it is.
IMAGES = {"mae": 287_400, "wsp": 86_220, "classify": 43_110, "linear": 21_555}


def get_config(data=DIGITS, image_size=32, patch=4, linear_seeds=3):
    """`image_size` and `patch` are for other data than the embedded digits, which are 8 pixels wide."""
    c = ml_collections.ConfigDict()
    c.title = "MAE, WSP and MAE→WSP as starting points"
    c.data = data
    own = {}
    if data != DIGITS:
        # The same recipe and number of images seen on other data; its hashtags are simulated from the labels.
        own = {
            "data.name": data,
            "data.image_size": image_size,
            "data.hashtags": "simulated",
            "data.flip": True,
            "eval_every": "50%",
            "model.size": f"Ti/{patch}",
        }
    crop = own and {"data.crop": "random_resized"}

    def stage(name, recipe, init=None, report=None, **overrides):
        source = {} if init in (None, "random") else {"init_from": init}
        row = {} if report is None else {"report": report}
        length = {"train_for": f"{IMAGES[recipe]} images"} if own and recipe in IMAGES else {}
        overrides = {**own, **length, **overrides}
        return dict(name=name, config=f"../{recipe}/digits.py", overrides=overrides, **source, **row)

    stages = [
        stage("mae", "mae", **crop),
        stage("wsp", "wsp", **crop),
        stage("mae_wsp", "wsp", init="mae", **crop),
    ]
    for init, label in LABELS.items():
        for seed in range(linear_seeds):
            row = dict(init=label, task="linear")
            stages.append(stage(f"linear_{init}_{seed}", "linear", init=init, report=row, seed=seed))
        row = dict(init=label, task="5-shot")
        stages.append(stage(f"5shot_{init}", "low_shot", init=init, report=row))
        row = dict(init=label, task="finetune")
        stages.append(stage(f"finetune_{init}", "classify", init=init, report=row, **crop))
    c.stages = stages
    return c
