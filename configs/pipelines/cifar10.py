"""The paper's comparison on CIFAR-10 with a small ViT: what are MAE, WSP and MAE→WSP worth for image classification?

Four starting points {random, MAE, WSP on simulated hashtags, MAE→WSP} × {finetune; linear and kNN on all labels; 1, 5
and 10 labelled images per class with logistic and ridge regression, VPT, AdaptFormer and LoRA}, then a report.

python -m mae_pp_jax pipeline --config=configs/pipelines/cifar10.py --workdir=runs/cifar10
python -m mae_pp_jax pipeline --config=configs/pipelines/cifar10.py:data=/path/to/cifar10 --workdir=runs/cifar10
python -m mae_pp_jax pipeline --config=configs/pipelines/cifar10.py:long --workdir=runs/cifar10_long

`data` is the name in TFDS, or a folder train/CLASS/*, test/CLASS/* of images of any kind, also grey ones. Batches and
learning rates are those of configs/*/cifar10.py. `long` is for an accelerator: a wider and deeper model, 400 epochs of
MAE, 100 of WSP and of finetuning with all its augmentation, five draws and a grid of learning rates for adapters.
Hardware: 2 CPU cores, an hour. Expected: the table of configs/README.md, "CIFAR-10". Run here on 2026-11-25; `long`: not
run.
"""

import ml_collections

from .comparison import LABELS

ADAPTERS = {"vpt_deep": "VPT", "adaptformer": "AdaptFormer", "lora": "LoRA"}
SHOTS = (1, 5, 10)
PLAIN = {"data.randaugment": "", "mixup": 0.0, "cutmix": 0.0, "erasing": 0.0, "model.drop_path": 0.0}
SMALL = {"size": "Ti/4", "width": 96, "depth": 4, "heads": 4}
LARGE = {"size": "S/4", "width": 0, "depth": 0, "heads": 0}
EPOCHS = {False: {"mae": 8.0, "wsp": 2.0, "classify": 1}, True: {"mae": 400.0, "wsp": 100.0, "classify": 100}}


def get_config(data="cifar10", long=False):
    c = ml_collections.ConfigDict()
    c.title = "MAE, WSP and MAE→WSP as starting points for CIFAR-10"
    c.data, c.stages = data, []
    sizes, epochs = LARGE if long else SMALL, EPOCHS[long]
    model = {f"model.{name}": value for name, value in sizes.items()}

    def stage(name, recipe, overrides, source=None, arguments="", row=None):
        source = {"init_from": source} if source else {}
        report = {"report": row} if row else {}
        config = f"../{recipe}/cifar10.py:data={data}{arguments}"
        c.stages += [dict(name=name, config=config, overrides=overrides, **source, **report)]

    text = ",".join(f"{name}={value}" for name, value in sizes.items())
    c.stages += [dict(name="random", config=f"../encoder/random.py:image_size=32,{text}", overrides={})]
    stage("mae", "mae", model, arguments=f",epochs={epochs['mae']}")
    stage("wsp", "wsp", model, arguments=f",epochs={epochs['wsp']}")
    stage("mae_wsp", "wsp", model, "mae", f",epochs={epochs['wsp']}")
    for init, label in LABELS.items():
        suite = {"data.name": data, "linear.epochs": 100.0 if long else 20.0, "low_shot.splits": 5}
        c.stages += [
            dict(name=f"suite_{init}", suite="image", of=init, overrides=suite, report=dict(init=label)),
        ]
        own = {} if long else {**PLAIN, "model.pool": "cls"}
        row = dict(init=label, task="finetune")
        stage(f"finetune_{init}", "classify", own, init, f",epochs={epochs['classify']}", row)
        for kind, task in ADAPTERS.items():
            for shots in SHOTS:
                row = dict(init=label, task=f"{shots}-shot {task}")
                arguments = f",adapter={kind},shots={shots}{',long' if long else ''}"
                stage(f"{kind}_{shots}shot_{init}", "low_shot", {}, init, arguments, row)
    return c
