"""What all stages on single images share: records to examples, uint8 to normalised pixels, the encoder's handoff."""

import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import numpy as np

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.handoff import Handoff
from mae_pp_jax.core.optim import FROZEN, Rules
from mae_pp_jax.data import augment, evals, fields, images, pipeline, ragged, randaugment
from mae_pp_jax.data.evals import EvalConfig
from mae_pp_jax.data.randaugment import RandAugment
from mae_pp_jax.data.source import tag_counts
from mae_pp_jax.models import vit
from mae_pp_jax.stages.shared import position_tables
from mae_pp_jax.stages.shared.image_config import ImageStageConfig
from mae_pp_jax.stages.shared.image_records import ImageRecords

_HASHTAG_DRAW = images.CROP_DRAWS  # place of the random number that chooses hashtags


class ImageStage(ImageRecords):
    """A stage on single images: makes examples and pixels of its records, and takes an encoder from other runs."""

    example: ClassVar = "image"

    def __init__(self, config: ImageStageConfig):
        self.config = config
        for name in {"train", "data", "speed"} & set(config.evals):
            raise UserError(f"config.evals.{name}: '{name}/…' names metrics of the training; call this set otherwise")
        for name, own in config.evals.items():
            if unknown := set(own.evaluators) - set(self.evaluator_names):
                known = ", ".join(self.evaluator_names)
                raise UserError(
                    f"config.evals.{name}.evaluators: stage '{config.stage}' has no {min(unknown)}; it has {known}"
                )
            if "label" not in self.targets() and (own.labels or own.logits != "all"):
                raise UserError(
                    f"config.evals.{name}.{'labels' if own.labels else 'logits'}: stage '{config.stage}' does not "
                    "classify; leave it out, or evaluate a run of a stage that does"
                )
        vit.grid(config.model, self.image_size)  # a size that does not fit is reported before data is opened

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that the model takes."""
        return self.config.data.size

    @functools.cached_property
    def randaugment(self) -> RandAugment | None:
        """The policy that training images are changed by, if there is one."""
        return randaugment.parse(text) if (text := self.config.data.randaugment) else None

    @property
    def draws(self) -> int:
        """Random numbers per example: of its crop, one that chooses hashtags, and those of RandAugment."""
        return _HASHTAG_DRAW + 1 + (self.randaugment.draws if self.randaugment else 0)

    def load(self, record: dict, draws: np.ndarray) -> dict:
        """One training example, as `example_spec` declares it, from random numbers [draws] uniform in [0, 1).

        Raises:
          Unreadable: the image is damaged.
          UserError: the record has no label and the stage needs one.
        """
        data, image = self.config.data, record["image"]
        if data.crop.startswith("random_resized"):
            once = data.crop == "random_resized_once"
            image = images.random_resized_crop(image, data.size, draws, data.crop_scale, data.crop_ratio, once)
        elif data.crop == "shift":
            image = images.shift_crop(image, data.size, draws, data.shift)
        else:
            image = self.shown(image)
        if self.randaugment:
            image = self.randaugment(image, draws[_HASHTAG_DRAW + 1 :], self._fill)
        return {"image": image, **self._load_targets(record, draws[_HASHTAG_DRAW])}

    @functools.cached_property
    def _fill(self) -> tuple[int, ...]:
        """The mean colour, which RandAugment moves in from outside."""
        return tuple(min(255, round(255 * mean)) for mean in self.config.data.mean)

    def shown(self, image: bytes | np.ndarray) -> np.ndarray:
        """An image as the first evaluation set shows it: uint8 [height, width, 3]."""
        return evals.crop(image, next(iter(self.config.evals.values()), EvalConfig()), self.config.data.size)

    def load_eval(self, record: dict, config: EvalConfig) -> dict:
        """One example of an evaluation set; as `load`, without randomness."""
        image = evals.crop(record["image"], config, self.config.data.size)
        example = {"image": image, **self._load_targets(record, 0.5)}
        if "allowed" in record:
            example["allowed"] = np.zeros(self.classes, bool)
            example["allowed"][record["allowed"]] = True
        return example

    def _load_targets(self, record: dict, number: float) -> dict:
        """What the loss reads besides pixels; a number uniform in [0, 1) chooses among too many hashtags."""
        wanted, out = self.targets(), {}
        if "label" in wanted:
            out["label"] = record["answers"] if "answers" in record else self._label(record)
        if "hashtags" in wanted:
            out["hashtags"], out["hashtags_cut"] = ragged.pad(
                record["hashtags"], self.config.data.max_tags, lambda ids: self._prefer_hashtags(number, ids)
            )
        return out

    def _label(self, record: dict) -> int:
        label = record.get("label", -1)
        if label < 0:
            raise UserError("has no label; choose a split in which every image has one")
        if label >= self._classes:
            raise UserError(f"has label {label}, and there are {self._classes} classes, from 0 on; correct the dataset")
        return label

    @functools.cached_property
    def _classes(self) -> int:
        return self.classes

    def _prefer_hashtags(self, number: float, ids: np.ndarray) -> np.ndarray:
        """The order of preference of hashtags: the rarest where they are counted, else drawn by `number`."""
        return ragged.drawn(number, ids) if self._tag_counts is None else ragged.rarest(self._tag_counts, ids)

    @functools.cached_property
    def _tag_counts(self) -> np.ndarray | None:
        if self.config.data.resample == "none":
            return None
        counts, own = tag_counts(self.train_source, self.config.data), fields.names(self.train_source, "hashtags")
        if own == self.names["hashtags"]:
            return counts
        known = dict(zip(own, counts, strict=True))
        return np.array([known.get(name, 0) for name in self.names["hashtags"]], np.int64)

    def example_spec(self) -> pipeline.Spec:
        """What `load` gives: name → (shape, dtype) in one example."""
        return {
            "image": ((*self.config.data.size, 3), np.uint8),
            **{name: (shape, np.int32) for name, shape in self.targets().items()},
        }

    def eval_spec(self, name: str) -> pipeline.Spec:
        """What `load_eval` gives for an evaluation set: as `load`, but for what its records say of the classes.

        Where several classes may be right, `label` is int32 [most], padded with -1. Where the model chooses among some
        of its classes, `allowed` is bool [classes].
        """
        source, spec = self.eval_source(name), dict(self.example_spec())
        if "label" in spec and "answers" in source.fields:
            spec["label"] = (next(source.column("answers")).shape, np.int32)
        if "label" in spec and "allowed" in source.fields:
            spec["allowed"] = ((self.classes,), bool)
        return spec

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        batch, example = self.config.global_batch, {**self.example_spec(), "unreadable": ((), np.int32)}
        return {name: jax.ShapeDtypeStruct((batch, *shape), kind) for name, (shape, kind) in example.items()}

    def answers(self, names, most):
        raise UserError(
            f"--workdir: a run of stage '{self.config.stage}' knows no classes; train one that does from it (classify, "
            "linear, low_shot or wsp, with --config.init_from.run), or write its features with embed"
        )

    def pixels(self, batch: Mapping[str, jax.Array], keys: jax.Array | None = None) -> jax.Array:
        """uint8 → normalised float32 [batch, height, width, 3]; flipped at random when keys [batch] are given.

        Models cast to their compute dtype themselves; MAE's target needs the full precision.
        """
        data, images = self.config.data, batch["image"]
        if keys is not None and data.flip:
            images = augment.random_flip(images, keys)
        return augment.normalize(images, data.mean, data.std)

    def sheet(self, batch: Mapping[str, jax.Array], keys: jax.Array) -> tuple[dict[str, jax.Array], list[str]]:
        """What training makes of a batch, for people to look at.

        Args:
          batch: as `train_batches` gives it.
          keys: random keys [batch], those that `augment` and `loss` get.

        Returns:
          (title → images, uint8 [batch, height, width, 3]; a caption for each example).
        """
        captions = [self.name_of("label", label) for label in batch["label"]] if "label" in batch else []
        return {"as trained": self.uint8(self.pixels(batch, keys))}, captions

    def uint8(self, pixels: jax.Array) -> jax.Array:
        """The inverse of `pixels`, for pictures."""
        return augment.denormalize(pixels, self.config.data.mean, self.config.data.std)

    def encoder_handoff(self, *, head: str, frozen: bool = False) -> Handoff:
        """Takes the encoder of an MAE, WSP, classification or imported run.

        Positions are resized when the grid of patches changes, see `position_tables`. The last norm belongs to the
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
            resize=((r"encoder/pos_embed", lambda meta: position_tables.resized(self.config, meta, frozen=frozen)),),
        )

    def parameter_axes(self):
        return vit.PARAMETER_AXES

    def fixed_positions(self) -> Rules:
        """Sin-cos positions are a table, not weights."""
        return ((r".*pos_embed", FROZEN),) if self.config.model.positions == "sincos" else ()
