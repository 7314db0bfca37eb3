"""What all stages on single images share: the data they read, uint8 to normalised pixels, and the encoder's handoff."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core.config import key, section
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.handoff import Handoff
from mae_pp_jax.core.optim import FROZEN, Rules
from mae_pp_jax.core.stage import Stage, StageConfig
from mae_pp_jax.data import augment, fields, orders, pipeline
from mae_pp_jax.data.faults import Faults
from mae_pp_jax.data.source import DataConfig, open_eval_source, open_source, training_order
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
class ImageStageConfig(StageConfig):
    """Keys of every stage on single images."""

    data: DataConfig = section(DataConfig)
    declared: DeclaredConfig = section(DeclaredConfig)
    model: vit.VitConfig = section(vit.VitConfig)


class ImageStage(Stage):
    """A stage on single images: opens the data when it is first asked for, and prepares pixels."""

    config: ImageStageConfig

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
        batch, size = self.config.global_batch, self.config.data.image_size
        return dict(
            image=jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            unreadable=jax.ShapeDtypeStruct((batch,), jnp.int32),
            **{name: jax.ShapeDtypeStruct((batch, *shape), jnp.int32) for name, shape in self.targets().items()},
        )

    def counts(self, batch):
        return {"data/unreadable": jnp.sum(batch["unreadable"])}

    def check_counts(self, counts, images):
        self.faults.check(counts["data/unreadable"], images, self.config.data.max_unreadable)

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
