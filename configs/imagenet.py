"""ImageNet-1k as the recipes on it read it: TFDS name, splits and counts; shared, not a recipe."""

RECORDS = 1_281_167
DATA = dict(name="imagenet2012", image_size=224, crop="random_resized")
# At 224 pixels MAE and timm evaluate on the centre of an image resized to 256, by Pillow: 0.875 of its shorter side.
EVALS = dict(val=dict(split="validation", share=0.875, resize="bicubic"))
# What a model trained on ImageNet-1k is measured on without training; TFDS prepares them. configs/README.md has the
# same of folders, and ObjectNet, whose files have no TFDS name.
_ROBUSTNESS = dict(
    real=dict(data="imagenet2012_real", split="validation", labels="real_label"),
    v2=dict(data="imagenet_v2/matched-frequency", split="test"),
    a=dict(data="imagenet_a", split="test", classes="imagenet_a", logits="set"),
    r=dict(data="imagenet_r", split="test", classes="imagenet_r", logits="set"),
    sketch=dict(data="imagenet_sketch", split="test"),
)


def robustness(transform=EVALS["val"], objectnet=""):
    """Evaluation sets by name, with share, crop and resize of the set `transform`.

    `objectnet`: the folder of ObjectNet's archive, which holds images/ and mappings/; empty: without it.
    """
    sets = dict(_ROBUSTNESS)
    if objectnet:
        names = ("folder_to_objectnet_label", "objectnet_to_imagenet_1k")
        classes = ",".join(f"{objectnet}/mappings/{name}.json" for name in names)
        sets["objectnet"] = dict(data=f"{objectnet}/images", split="all", classes=classes, border=2)
    return {name: {**transform, **own} for name, own in sets.items()}


DECLARED = dict(records=RECORDS, classes=1000)
