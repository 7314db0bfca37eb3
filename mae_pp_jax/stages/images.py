"""What all stages on single images share: the data they read, uint8 to normalised pixels, and the encoder's handoff."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.config import key, section
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.handoff import Handoff
from mae_pp_jax.core.optim import FROZEN, Rules
from mae_pp_jax.core.stage import Stage, StageConfig
from mae_pp_jax.data import augment, orders, pipeline
from mae_pp_jax.data.faults import Faults
from mae_pp_jax.data.source import DataConfig, open_eval_source, open_source, training_order
from mae_pp_jax.models import positions, vit
from mae_pp_jax.models.patches import height_width


@dataclasses.dataclass(frozen=True)
class DeclaredConfig:
    """Facts about the training data that a recipe states, so that it can be planned where the data is not at hand.

    0 asks the data. When training, a stated fact that the data contradicts is an error.
    """

    records: int = key(0, "training records", low=0)
    classes: int = key(0, "classes", low=0)
    hashtags: int = key(0, "size of the hashtag vocabulary", low=0)


@dataclasses.dataclass(frozen=True)
class ImageStageConfig(StageConfig):
    """Keys of every stage on single images."""

    data: DataConfig = section(DataConfig)
    declared: DeclaredConfig = section(DeclaredConfig)
    model: vit.VitConfig = section(vit.VitConfig)

    def unused(self):
        data, found = self.data, {"data.max_tags": "only stage wsp reads hashtags of a batch"}
        if data.crop != "random_resized":
            found |= dict.fromkeys(("data.crop_scale", "data.crop_ratio"), "only data.crop=random_resized uses it")
        if data.crop != "shift":
            found["data.shift"] = "only data.crop=shift uses it"
        if data.resample != "sqrt":
            found["data.resample_t"] = "only data.resample=sqrt uses it"
        if data.resample != "swag":
            found["data.resample_length"] = "only data.resample=swag uses it"
        return super().unused() | found


# Of stages that train a head on a frozen encoder.
FROZEN_ENCODER = {"model.drop_path": "the encoder is frozen and always runs whole"}


class ImageStage(Stage):
    """A stage on single images: opens the data when it is first asked for, and prepares pixels."""

    example: ClassVar = "image"
    config: ImageStageConfig

    def __init__(self, config: ImageStageConfig):
        self.config = config
        vit.grid(config.model, self.image_size)  # a size that does not fit is told before data is opened

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that the model takes."""
        return height_width(self.config.data.image_size)

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

    @functools.cached_property
    def eval_source(self):
        return open_eval_source(self.config.data, self.train_source)

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
        data, train, test = self.config.data, self.train_source, self.eval_source
        return dict(
            name=data.name,
            split=data.train_split,
            records=len(train),
            fingerprint=train.fingerprint,
            eval_split=data.eval_split,
            eval_records=len(test),
            eval_fingerprint=test.fingerprint,
        )

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        wanted = self.batch_spec()
        batches = pipeline.train_batches(
            self.train_source,
            self.config.data,
            global_batch=self.config.global_batch,
            seed=self.config.seed,
            start_step=start_step,
            process_index=self.reader[0],
            process_count=self.reader[1],
            order=self.train_order,
            labelled="label" in wanted,
            faults=self.faults,
        )
        return ({name: batch[name] for name in wanted} for batch in batches)

    def eval_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """One pass over the evaluation split; `mask` is 0 on padding."""
        return pipeline.eval_batches(
            self.eval_source,
            self.config.data,
            global_batch=self.config.global_batch,
            process_index=self.reader[0],
            process_count=self.reader[1],
            labelled="label" in self.targets(),
            faults=self.faults,
        )

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        batch = self.config.global_batch
        return dict(
            image=jax.ShapeDtypeStruct((batch, *self.image_size, 3), jnp.uint8),
            unreadable=jax.ShapeDtypeStruct((batch,), jnp.int32),
            **{name: jax.ShapeDtypeStruct((batch, *shape), jnp.int32) for name, shape in self.targets().items()},
        )

    def counts(self, batch):
        return {"data/unreadable": jnp.sum(batch["unreadable"])}

    def check_counts(self, counts, examples):
        self.faults.check(counts["data/unreadable"], examples, self.config.data.max_unreadable)

    def targets(self) -> dict[str, tuple[int, ...]]:
        """What the loss reads besides pixels: name in the batch → shape for one image."""
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

    def encoder_handoff(self, *, head: str, frozen: bool = False) -> Handoff:
        """Takes the encoder of an MAE, WSP, classification or imported run.

        Positions are resized when the grid of patches changes (MAE util/pos_embed.py). The last norm belongs to the
        way of pooling: where that differs from the source's, it starts fresh. So do a class token that the source
        lacks, with a row of zeros among the positions; one that this stage lacks is dropped, with its row.

        Args:
          head: pattern of what starts fresh beside the encoder.
          frozen: whether this stage does not train the encoder, so that nothing of it may start fresh for good.
        """
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
            fresh=(head, r"encoder/(norm|fc_norm)/.*", r"encoder/cls_token"),
            resize=((r"encoder/pos_embed", functools.partial(self.resize_positions, frozen=frozen)),),
        )

    def resize_positions(self, source: Mapping, *, frozen: bool = False):
        """How a position table of the run with the config `source` becomes one of this stage; see `handoff.Resize`."""
        new, old = self.config.model, config_lib.resolve(vit.VitConfig, source["model"])
        new_grid = vit.grid(new, self.image_size)
        old_grid = vit.grid(old, height_width(source["data"]["image_size"]))
        if frozen and new.cls_token and not old.cls_token:
            raise UserError(
                "config.model.cls_token: the run it starts from has no class token, and this stage trains none; set "
                "config.model.cls_token=false and config.model.pool=mean"
            )
        notes = []
        if new_grid != old_grid:
            notes.append("grid {}×{} → {}×{}".format(*old_grid, *new_grid))
        if new.cls_token != old.cls_token:
            notes.append(f"{'with a row of zeros' if new.cls_token else 'without the row'} for the class token")
        function = functools.partial(_resize, old=(old_grid, old.cls_token), new=(new_grid, new.cls_token))
        resized = function if notes else None
        if old.positions == "learned" and new.positions == "sincos":
            notes.append("learned there, fixed here as they are")
        return resized, ", ".join(notes)

    def parameter_axes(self):
        return vit.PARAMETER_AXES

    def fixed_positions(self) -> Rules:
        """Sin-cos positions are a table, not weights."""
        return ((r".*pos_embed", FROZEN),) if self.config.model.positions == "sincos" else ()


def _resize(table: np.ndarray, old: tuple, new: tuple) -> np.ndarray:
    """A position table of (grid, class token) `old` for those of `new`."""
    table = positions.resize(table, new[0], has_cls=old[1], old_grid=old[0])
    return positions.set_class_row(table, old[1], new[1])


def _facts(source) -> dict[str, int]:
    """What a data source has, under the names of `config.declared`."""
    return dict(records=len(source), classes=len(source.class_names), hashtags=len(source.hashtag_names))
