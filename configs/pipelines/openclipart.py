"""MAE, WSP and MAE→WSP on drawings with the real tags of their authors (Open Clip Art Library 0.18, 64 × 64 pixels).

{random, MAE, WSP, MAE→WSP} × {linear, 5-shot} on the 22 categories, tag mAP of the two that know tags, three seeds.
First make the dataset and its vocabulary (README, "Bring your data"), then

python -m mae_pp_jax pipeline --config=configs/pipelines/openclipart.py --workdir=runs/openclipart

Small enough for two CPU cores; `width`, `depth` and `length` (a factor on all lengths) suit it to an accelerator.
"""

import ml_collections

LABELS = {"random": "random", "mae": "MAE", "wsp": "WSP", "mae_wsp": "MAE→WSP"}
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

    def stage(name, recipe, seed, init=None, report=None, **overrides):
        source = {} if init in (None, "random") else {"init_from": f"{init}_{seed}"}
        row = {} if report is None else {"report": report}
        images = {"train_for": f"{round(IMAGES[recipe] * length)} images"} if recipe in IMAGES else {}
        overrides = {**common, **images, "seed": seed, **overrides}
        return dict(name=f"{name}_{seed}", config=f"../{recipe}/digits.py", overrides=overrides, **source, **row)

    stages = []
    for seed in range(seeds):
        tags = {"data.vocabulary": vocabulary, **crop}
        stages.append(stage("mae", "mae", seed, **crop))
        stages.append(stage("wsp", "wsp", seed, report=dict(init="WSP", task="tag mAP"), **tags))
        row = dict(init="MAE→WSP", task="tag mAP")
        stages.append(stage("mae_wsp", "wsp", seed, init="mae", report=row, **tags))
        for init, label in LABELS.items():
            row = dict(init=label, task="linear")
            stages.append(stage(f"linear_{init}", "linear", seed, init=init, report=row))
            row = dict(init=label, task="5-shot")
            stages.append(stage(f"5shot_{init}", "low_shot", seed, init=init, report=row))
    c.stages = stages
    return c
