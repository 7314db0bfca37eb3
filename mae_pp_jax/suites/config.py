"""Keys of the suite `image`, and how they are resolved for a run."""

import dataclasses
from collections.abc import Mapping

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.config import key, named, section
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data.evals import EvalConfig
from mae_pp_jax.data.source import DataConfig
from mae_pp_jax.evaluation.probes import knn, linear_grid, logistic, ridge

EVALS = ("linear", "knn", "low_shot", "robustness")


@dataclasses.dataclass(frozen=True)
class SuiteDataConfig:
    """The labelled images that classifiers are fitted on, and how features are made of them."""

    name: str = key("", "dataset, as config.data.name of a training; empty: the run's own training data")
    data_dir: str = key("", "where TFDS keeps its datasets; empty: TFDS's default")
    cache_dir: str = key("", "where what is computed from a dataset is kept; empty: the user's cache")
    train_split: str = key("train", "split that classifiers are fitted on, and settings chosen by")
    eval_fraction: float = key(0.2, "share of each class held out, for a folder without splits", low=0.0, high=1.0)
    image_size: int | tuple[int, ...] | None = key(
        None, "side of square images in pixels, or HEIGHT,WIDTH; resizes positions; none: as the run", low=1
    )
    pool: str = key("auto", "feature of an image; auto: as the model", choices=("auto", "cls", "mean", "projection"))
    dtype: str = key("float32", "how features are kept; float16 takes half the space", choices=("float32", "float16"))
    batch: int = key(256, "images at once, over all devices", low=1)
    threads: int | None = key(None, "threads that read and decode; none: cores + 1, at most 8", low=0)
    max_unreadable: float = key(0.1, "share of unreadable images above which it stops", low=0.0, high=1.0)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels, None for the run's."""
        if self.image_size is None or isinstance(self.image_size, int):
            return self.image_size and (self.image_size,) * 2
        return tuple(self.image_size)

    def opened(self) -> DataConfig:
        """The config that opens it, by labels alone: hashtags choose no images here."""
        names = ("name", "data_dir", "cache_dir", "train_split", "eval_fraction", "threads", "max_unreadable")
        return DataConfig(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True)
class LinearConfig:
    """Linear classifiers for a grid of settings (VPT's); the best on a held-out part of train is fitted on all of it."""

    learning_rates: tuple[float, ...] = key(linear_grid.LEARNING_RATES, "tried, for 256 images", low=0.0)
    weight_decays: tuple[float, ...] = key(linear_grid.WEIGHT_DECAYS, "tried with each of them", low=0.0)
    epochs: float = key(100.0, "passes over the features", low=0.0)
    warmup: float = key(10.0, "passes in which the learning rate rises", low=0.0)
    batch: int = key(1024, "images per step", low=1)
    held_out: float = key(0.1, "share of each training class that settings are chosen by", low=0.0, high=0.9)
    seeds: int = key(3, "final fits, of other first weights and orders", low=1)


@dataclasses.dataclass(frozen=True)
class KnnConfig:
    """Weighted nearest neighbours (DINO's)."""

    neighbours: tuple[int, ...] = key(
        (10, 20, 100), "numbers of neighbours; larger than the training set: left out", low=1
    )
    temperature: float = key(knn.TEMPERATURE, "of the weights of votes", low=1e-3)


@dataclasses.dataclass(frozen=True)
class LowShotConfig:
    """Classifiers from k images per class: logistic regression (MSN's) and ridge regression (big_vision's)."""

    shots: tuple[int, ...] = key((1, 5, 10), "images per class", low=1)
    splits: int = key(5, "draws of the images, the same as those of stage low_shot with this seed", low=1)
    splits_from: str = key(
        "", "folder of files that list the images, WORKDIR/splits of a run or published ones; empty: drawn"
    )
    logistic_l2: tuple[float, ...] = key(
        logistic.PENALTIES, "penalties tried, chosen by undrawn training images", low=1e-9
    )
    ridge_l2: tuple[float, ...] = key((ridge.L2,), "penalties; of several, chosen by undrawn training images", low=1e-9)
    chosen_by: int = key(10_000, "undrawn training images that penalties are chosen by, at most", low=1)


@dataclasses.dataclass(frozen=True)
class SuiteConfig:
    """Keys of the suite `image`."""

    suite: str = key("image", "name of the suite", choices=("image",))
    evals: tuple[str, ...] = key(EVALS, f"what is measured, of {', '.join(EVALS)}")
    seed: int = key(0, "of all draws", low=0)
    data: SuiteDataConfig = section(SuiteDataConfig)
    test: EvalConfig = section(EvalConfig, "the images that accuracies are of, and the transform of all images")
    linear: LinearConfig = section(LinearConfig)
    knn: KnnConfig = section(KnnConfig)
    low_shot: LowShotConfig = section(LowShotConfig)
    robustness: dict[str, EvalConfig] = named(
        EvalConfig, "sets that a classifier is measured on beside those of its own config", names=()
    )

    def __post_init__(self):
        for name in self.evals:
            if name not in EVALS:
                raise UserError(f"--evals: {name} is not one of {', '.join(EVALS)}")
        for field in ("learning_rates", "weight_decays"):
            if not getattr(self.linear, field):
                raise UserError(f"config.linear.{field}: must have at least one value")
        for field in ("logistic_l2", "ridge_l2", "shots"):
            if not getattr(self.low_shot, field):
                raise UserError(f"config.low_shot.{field}: must have at least one value")


def for_run(
    run_config: Mapping, trained_on: bool, where: str, mapping: Mapping, overrides: dict[str, str] | None = None
) -> SuiteConfig:
    """The suite's config for a run.

    What is not stated of data and transform is as in the run: its training data, and its first evaluation set.

    Args:
      run_config: content of the run's config.json, with the keys of today.
      trained_on: whether the run was trained on its data; imported and random weights were not.
      where: name of the run, for messages.
      mapping: stated values, nested.
      overrides: dotted key → text.

    Raises:
      UserError: a key or value that the suite does not have, or no data is known.
    """
    stated = config_lib.resolve(SuiteConfig, mapping, overrides)
    if stated.data.name:
        return stated
    if not trained_on:
        raise UserError(f"--data: {where} was not trained on data here; name a labelled dataset, as in --data=cifar10")
    own, test = run_config["data"], next(iter(run_config.get("evals", {}).values()), {})
    shared = ("name", "data_dir", "cache_dir", "train_split", "eval_fraction", "max_unreadable")
    base = dict(data={name: own[name] for name in shared}, test={k: v for k, v in test.items() if k != "evaluators"})
    return config_lib.resolve(SuiteConfig, config_lib.merge(base, mapping), overrides)
