"""A text encoder with random weights, to compare with one that was trained on text.

python -m mae_pp_jax train --config=configs/text_encoder/random.py:size=minilm_l6 --workdir=runs/random_text

Nothing is trained: the initial weights are written as a finished run. Other weights by --config.seed=1. Trained ones come
from `convert --from=FOLDER`. Hardware: any, seconds. Expected: with images no better than chance until trained. Run here
on 2026-11-25.
"""

import ml_collections


def get_config(size="xlmr_base", vocabulary=0, positions=0, width=0, depth=0, heads=0, mlp=0):
    """What is not 0 replaces that of the size, or of the run in `init_from`."""
    c = ml_collections.ConfigDict()
    c.stage = "text_encoder"
    numbers = dict(vocabulary=vocabulary, positions=positions, width=width, depth=depth, heads=heads, mlp=mlp)
    c.text = dict(size=size, **{name: number for name, number in numbers.items() if number})
    return c
