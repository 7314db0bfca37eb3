"""Full finetuning on ImageNet-1k of an MAE or WSP run, or of a released encoder: facebookresearch/mae FINETUNE.md.

python -m mae_pp_jax train --config=configs/classify/in1k.py:size=L/16,init=MAE_RUN --workdir=DIR
python -m mae_pp_jax train --config=configs/classify/in1k.py:init=mae:vit_l16 --workdir=DIR
python -m mae_pp_jax train --config=configs/classify/in1k.py:size=H/14,init=WSP_RUN,image_size=518 --workdir=DIR

Effective batch 1024; learning rate 5e-4 (B) or 1e-3 · batch / 256. RandAugment, mixup, cutmix, random erasing and
smoothing as published; crops are resized bilinearly. Hardware: an accelerator; `plan` says how many chips, none has been
tried. Expected top-1: MAE on ImageNet-1k ViT-B 83.6, ViT-L 85.9, ViT-H 86.9 (MAE repository); for the released encoders
see mae_pp_jax/interop/README.md. Here: not run.
`robustness` adds ReaL, V2, -A, -R and -Sketch, which TFDS prepares, to what is measured; on a finished run it costs less
to `evaluate` them (configs/README.md, "Robustness"). Released models that are finetuned already (names that end in _ft_in1k) need no recipe: `evaluate` measures them.
"""

from ..finetuning import finetuning
from ..imagenet import DATA, DECLARED
from ..imagenet import robustness as robustness_sets


def get_config(size="", init="", image_size=0, robustness=False):
    """`size` is one of finetuning.SIZES with a patch (B/16); `init`, a run or a released encoder, which has its size."""
    c, crop = finetuning(size, init, image_size)
    c.data.name = DATA["name"]
    c.evals = dict(val=dict(crop, split="validation"))
    if robustness:
        c.evals.update(robustness_sets(crop))
    c.declared = DECLARED
    return c
