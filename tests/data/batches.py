"""Batches of images, labels and hashtags as tests of the data layer read them, by a `load` of their own."""

import numpy as np

from mae_pp_jax.data import evals, fields, images, orders, pipeline, ragged

MAX_TAGS = 16


def spec(source, config):
    """Name → (shape, dtype) of what `load` makes of a record."""
    named = {"label": ((), np.int32), "hashtags": ((MAX_TAGS,), np.int32)}
    found = {name: value for name, value in named.items() if fields.names(source, name)}
    return {"image": ((*config.size, 3), np.uint8), **found}


def train_batches(source, config, *, order=None, seed=0, **options):
    def load(record, draws):
        image = record["image"]
        if config.crop == "random_resized":
            image = images.random_resized_crop(image, config.size, draws, config.crop_scale, config.crop_ratio)
        elif config.crop == "shift":
            image = images.shift_crop(image, config.size, draws, config.shift)
        else:
            image = images.center_crop(image, config.size)
        return _example(record, image)

    order = order or orders.Shuffled(len(source), seed)
    options = dict(seed=seed, draws=images.CROP_DRAWS, threads=config.threads, prefetch=config.prefetch) | options
    return pipeline.train_batches(source, order, load, spec(source, config), **options)


def eval_batches(source, config, eval_config=evals.EvalConfig(), **options):
    def load(record):
        return _example(record, evals.crop(record["image"], eval_config, config.size))

    options = dict(threads=config.threads, max_unreadable=config.max_unreadable) | options
    return pipeline.eval_batches(source, load, spec(source, config), **options)


def _example(record, image):
    example = {"image": image, "label": record.get("label")}
    if isinstance(record.get("hashtags"), np.ndarray):
        example["hashtags"], _ = ragged.pad(record["hashtags"], MAX_TAGS, lambda ids: np.arange(len(ids)))
    return example
