"""Full finetuning of an image encoder, as facebookresearch/mae FINETUNE.md; shared by recipes, not a recipe.

Its values are for 224 pixels. Those of MAWS at 512 and 518 are in an appendix that is not public; here they are the same.
"""

import ml_collections

# name of the size → epochs, learning rate at batch 256, layer decay, drop path. MAE has B, L and H.
SIZES = {"B": (100, 5e-4, 0.65, 0.1), "L": (50, 1e-3, 0.75, 0.2), "H": (50, 1e-3, 0.75, 0.3)}
SIZES = {"Ti": SIZES["B"], "S": SIZES["B"], **SIZES, "2B": SIZES["H"], "6.5B": SIZES["H"]}
# RandAugment, mixup, cutmix, random erasing and smoothing of labels
REGULARISED = dict(mixup=0.8, cutmix=1.0, erasing=0.25, label_smoothing=0.1)
RANDAUGMENT = "rand-m9-mstd0.5-inc1"
# released encoder → size, input in pixels for which its publisher gives a figure
RELEASED = {
    **{f"mae_in1k:vit_{name}": (size, 224) for name, size in (("b16", "B/16"), ("l16", "L/16"), ("h14", "H/14"))},
    "mae_in1k:vit_2b14": ("2B/14", 224),
    "mae_in21k:vit_l16": ("L/16", 512),
    **{
        f"{family}:vit_{name}": (size, pixels if family == "maws" else 224)
        for name, size, pixels in (
            ("b16", "B/16", 512),
            ("l16", "L/16", 512),
            ("h14", "H/14", 518),
            ("2b14", "2B/14", 518),
            ("6.5b14", "6.5B/14", 518),
        )
        for family in ("mae", "maws")
    },
    "swag:vit_b16": ("B/16", 384),
    "swag:vit_l16": ("L/16", 512),
    "swag:vit_h14": ("H/14", 518),
}


def finetuning(size, init, image_size):
    """All keys but those of the data, and the crop of evaluation images.

    `init` is a run or one of RELEASED, which fixes the size and, where `image_size` is 0, the input; "": random weights.
    """
    released = init.partition(":")[0] in {name.partition(":")[0] for name in RELEASED}
    if released and init not in RELEASED:
        raise ValueError(f"init={init} has no recipe here; known: {', '.join(RELEASED)}, and folders of runs")
    if released and size not in ("", RELEASED[init][0]):
        raise ValueError(f"size={size} and init={init}: that model is {RELEASED[init][0]}; leave size out")
    if init and not released and not size:
        raise ValueError(f"init={init}: give its size too, which learning rate and length go by: size=B/16,init={init}")
    size, pixels = RELEASED[init] if released else (size or "B/16", 224)
    if size.partition("/")[0] not in SIZES:
        raise ValueError(f"size={size} has no recipe here; known: {', '.join(SIZES)}, each with / and a patch")
    epochs, lr, layer_decay, drop_path = SIZES[size.partition("/")[0]]
    c = ml_collections.ConfigDict(dict(REGULARISED, stage="classify", layer_decay=layer_decay))
    c.train_for = f"{epochs} epochs"
    c.global_batch = 1024
    c.log_every, c.eval_every = "100 steps", "1 epochs"
    c.checkpoint = dict(every="2%")
    c.init_from = dict(run=init)
    c.data = dict(
        image_size=image_size or pixels, crop="random_resized", crop_scale=(0.08, 1.0), randaugment=RANDAUGMENT
    )
    c.model = dict(size=size, pool="mean", drop_path=drop_path, remat="dots")
    c.optim = dict(lr=lr, warmup="5 epochs", b2=0.999, weight_decay=0.05, min_lr=1e-6)
    return c, shown(init, c.data.image_size)


def shown(init, image_size):
    """How evaluation images get their size: MAE at 224, SWAG, and above 224 MAWS, which squeezes images into the input."""
    if image_size <= 224:
        return dict(crop="center", share=0.875, resize="bicubic")
    return dict(crop="center" if init.startswith("swag:") else "squeeze", resize="bicubic")
