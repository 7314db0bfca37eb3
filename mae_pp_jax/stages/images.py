"""What all stages on single images share: the data they read, uint8 to normalised pixels, and the encoder's handoff."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core.config import key, section
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.handoff import Handoff
from mae_pp_jax.core.optim import FROZEN, Rules
from mae_pp_jax.core.stage import Stage, StageConfig
from mae_pp_jax.data import augment, evals, fields, images, orders, pipeline, ragged
from mae_pp_jax.data.evals import EvalConfig
from mae_pp_jax.data.faults import Faults
from mae_pp_jax.data.source import DataConfig, open_source, tag_counts, training_order
from mae_pp_jax.models import positions, vit


@dataclasses.dataclass(frozen=True)
class DeclaredConfig:
    """Facts about the training data that a recipe states, so that it can be planned where the data is not at hand.

    0 asks the data. When training, a stated fact that the data contradicts is an error.
    """

    records: int = key(0, "training records", low=0)
    classes: int = key(0, "classes", low=0)
    hashtags: int = key(0, "size of the hashtag vocabulary", low=0)


@dataclasses.dataclass(frozen=True)
class EvalsConfig:
    """The evaluation sets by name."""

    test: EvalConfig = section(EvalConfig)


@dataclasses.dataclass(frozen=True)
class ImageStageConfig(StageConfig):
    """Keys of every stage on single images."""

    data: DataConfig = section(DataConfig)
    evals: EvalsConfig = section(EvalsConfig)
    declared: DeclaredConfig = section(DeclaredConfig)
    model: vit.VitConfig = section(vit.VitConfig)

    @classmethod
    def upgrade(cls, mapping: Mapping) -> dict:
        """The content of a config.json with the keys of today; runs of earlier versions had one evaluation set."""
        data = dict(mapping.get("data", {}))
        old = {new: data.pop(f"eval_{name}") for name, new in _ONE_SET.items() if f"eval_{name}" in data}
        return {**mapping, "data": data, "evals": {"test": old}} if old else dict(mapping)


_ONE_SET = {"name": "data", "split": "split", "crop": "crop", "share": "share"}  # keys data.eval_… → of the set


class ImageStage(Stage):
    """A stage on single images: opens the data when it is first asked for, and makes batches and pixels of it."""

    config: ImageStageConfig
    draws: ClassVar[int] = images.CROP_DRAWS + 1  # random numbers per example; the last chooses hashtags

    def __init__(self, config: ImageStageConfig):
        self.config = config
        vit.grid_side(config.model, config.data.image_size)  # a size that does not fit is told before data is opened

    @functools.cached_property
    def train_source(self):
        source = open_source(self.config.data, self.config.data.train_split)
        for name, found in _facts(source).items():
            stated = getattr(self.config.declared, name)
            if stated and stated != found:
                raise UserError(
                    f"config.declared.{name}: {stated}, but {self.config.data.name} has {found}; set it to {found} or 0"
                )
        return source

    @property
    def evals(self) -> dict[str, EvalConfig]:
        """The evaluation sets by name."""
        return {"test": self.config.evals.test}

    @functools.cached_property
    def eval_sources(self) -> dict[str, fields.Source]:
        """The evaluation sets that are open, by name."""
        return {}

    def eval_source(self, name: str) -> fields.Source:
        """The records of an evaluation set, numbered as the training data."""
        if name not in self.eval_sources:
            config = self.evals[name]
            self.eval_sources[name] = evals.open_eval_source(self.config.data, config, self.train_source, name)
        return self.eval_sources[name]

    @functools.cached_property
    def train_order(self) -> orders.Order:
        """Which training record stands at each position of the stream."""
        return training_order(self.train_source, self.config.data, self.config.seed)

    @functools.cached_property
    def faults(self) -> Faults:
        """The records that this process could not read."""
        return Faults()

    @property
    def records(self) -> int:
        """Images of one epoch: all of them, or a resampled pass where the recipe states no number."""
        if self.config.data.resample != "none" and not self.config.declared.records:
            return self.train_order.length
        return self.fact("records")

    def fact(self, name: str) -> int:
        """A key of `config.declared`: what it states, or else what the training data has."""
        if stated := getattr(self.config.declared, name):
            return stated
        try:
            return _facts(self.train_source)[name]
        except UserError as error:
            raise UserError(f"{error} (`plan` needs no data where config.declared.{name} is set)") from error

    @property
    def classes(self) -> int:
        """Number of classes; a `UserError` where the data has no labels."""
        classes = self.fact("classes")
        if not classes:
            raise UserError(
                f"config.data.name: {self.config.data.name} has no class labels; stage '{self.config.stage}' needs them"
            )
        return classes

    @property
    def dataset(self) -> dict:
        data, train, test = self.config.data, self.train_source, self.eval_source("test")
        return dict(
            name=data.name,
            split=data.train_split,
            records=len(train),
            fingerprint=train.fingerprint,
            eval_split=self.evals["test"].split,
            eval_records=len(test),
            eval_fingerprint=test.fingerprint,
        )

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        batches = self.batches_of(self.train_source, self.train_order, self.config.seed, start_step)
        wanted = self.batch_spec()
        return ({name: batch[name] for name in wanted} for batch in batches)

    def batches_of(self, source: fields.Source, order: orders.Order, seed: int, start_step: int, share: int = 1):
        """Training batches of `source` in `order`, `global_batch` / `share` examples each; see `pipeline`."""
        return pipeline.train_batches(
            source,
            order,
            self.load,
            self.example_spec(),
            global_batch=self.config.global_batch // share,
            seed=seed,
            draws=self.draws,
            start_step=start_step,
            process_index=self.reader[0],
            process_count=self.reader[1],
            threads=self.config.data.threads,
            prefetch=self.config.data.prefetch,
            faults=self.faults,
        )

    def eval_batches(self, name: str) -> Iterator[dict[str, np.ndarray]]:
        """One pass over an evaluation set; `mask` is 0 on padding."""
        config = self.evals[name]
        return pipeline.eval_batches(
            self.eval_source(name),
            lambda record: self.load_eval(record, config),
            self.example_spec(),
            global_batch=self.config.global_batch,
            process_index=self.reader[0],
            process_count=self.reader[1],
            threads=self.config.data.threads,
            prefetch=self.config.data.prefetch,
            max_unreadable=self.config.data.max_unreadable,
            faults=self.faults,
        )

    def load(self, record: dict, draws: np.ndarray) -> dict:
        """One training example, as `example_spec` declares it, from random numbers [draws] uniform in [0, 1).

        Raises:
          Unreadable: the image is damaged.
          UserError: the record has no label and the stage needs one.
        """
        data, image = self.config.data, record["image"]
        if data.crop == "random_resized":
            image = images.random_resized_crop(image, data.size, draws, data.crop_scale, data.crop_ratio)
        elif data.crop == "shift":
            image = images.shift_crop(image, data.size, draws, data.shift)
        else:
            image = evals.crop(image, next(iter(self.evals.values())), data.size)
        return {"image": image, **self._load_targets(record, draws[images.CROP_DRAWS])}

    def load_eval(self, record: dict, config: EvalConfig) -> dict:
        """One example of an evaluation set; as `load`, without randomness."""
        image = evals.crop(record["image"], config, self.config.data.size)
        return {"image": image, **self._load_targets(record, 0.5)}

    def _load_targets(self, record: dict, number: float) -> dict:
        """What the loss reads besides pixels; a number uniform in [0, 1) chooses among too many hashtags."""
        wanted, out = self.targets(), {}
        if "label" in wanted:
            out["label"] = record.get("label", -1)
            if out["label"] < 0:
                raise UserError("has no label; choose a split in which every image has one")
        if "hashtags" in wanted:
            out["hashtags"], out["hashtags_cut"] = ragged.pad(
                record["hashtags"], self.config.data.max_tags, lambda ids: self._prefer_hashtags(number, ids)
            )
        return out

    def _prefer_hashtags(self, number: float, ids: np.ndarray) -> np.ndarray:
        """The order of preference of hashtags: the rarest where they are counted, else drawn by `number`."""
        return ragged.drawn(number, ids) if self._tag_counts is None else ragged.rarest(self._tag_counts, ids)

    @functools.cached_property
    def _tag_counts(self) -> np.ndarray | None:
        return tag_counts(self.train_source, self.config.data)

    def example_spec(self) -> pipeline.Spec:
        """What `load` gives: name → (shape, dtype) in one example."""
        return {
            "image": ((*self.config.data.size, 3), np.uint8),
            **{name: (shape, np.int32) for name, shape in self.targets().items()},
        }

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        batch, example = self.config.global_batch, {**self.example_spec(), "unreadable": ((), np.int32)}
        return {name: jax.ShapeDtypeStruct((batch, *shape), kind) for name, (shape, kind) in example.items()}

    def counts(self, batch):
        counted = {"data/unreadable": "unreadable", "data/hashtags_cut": "hashtags_cut"}
        return {full: jnp.sum(batch[name]) for full, name in counted.items() if name in batch}

    def check_counts(self, counts, images):
        self.faults.check(counts["data/unreadable"], images, self.config.data.max_unreadable)

    def targets(self) -> dict[str, tuple[int, ...]]:
        """What the loss reads besides pixels: name in the batch → shape of its int32 for one image."""
        return {}

    def describe_batch(self, step: int) -> str:
        batch = self.config.global_batch
        records = self.train_order.at(np.arange(step * batch, (step + 1) * batch))
        shown = ", ".join(self.train_source.describe(int(r)) for r in records[:3])
        return f"records {shown} and {len(records) - 3} more" if len(records) > 3 else f"records {shown}"

    def pixels(self, batch: Mapping[str, jax.Array], keys: jax.Array | None = None) -> jax.Array:
        """uint8 → normalised float32 [batch, height, width, 3]; flipped at random when keys [batch] are given.

        Models cast to their compute dtype themselves; MAE's target needs the full precision.
        """
        data, images = self.config.data, batch["image"]
        if keys is not None and data.flip:
            images = augment.random_flip(images, keys)
        return augment.normalize(images, data.mean, data.std)

    def encoder_handoff(self, *, head: str) -> Handoff:
        """Takes the encoder of an MAE, WSP, classification or imported run; `head` is the pattern of what starts fresh.

        Positions are resized when the grid of patches changes (MAE util/pos_embed.py). The last norm belongs to the
        way of pooling: where that differs from the source's, it starts fresh.
        """
        cls = self.config.model.cls_token
        side = vit.grid_side(self.config.model, self.config.data.image_size)

        def resize(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
            del shape
            return positions.resize(table, (side, side), has_cls=cls)

        return Handoff(
            stages=("mae", "wsp", "classify", "encoder"),
            move=((r"(encoder/.*)", r"\1"),),
            drop=(
                r"decoder/.*",
                r"head/.*",
                r"projection/.*",
                r"logit_scale",
                r"encoder/(norm|fc_norm)/.*",
                r"encoder/cls_token",
            ),
            fresh=(head, r"encoder/(norm|fc_norm)/.*"),
            resize=((r"encoder/pos_embed", resize),),
        )

    def fixed_positions(self) -> Rules:
        """Sin-cos positions are a table, not weights."""
        return ((r".*pos_embed", FROZEN),) if self.config.model.positions == "sincos" else ()


def _facts(source) -> dict[str, int]:
    """What a data source has, under the names of `config.declared`."""
    return dict(
        records=len(source),
        classes=len(fields.names(source, "label")),
        hashtags=len(fields.names(source, "hashtags")),
    )
