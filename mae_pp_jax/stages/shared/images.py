"""What all stages on single images share: the data they read, uint8 to normalised pixels, and the encoder's handoff."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core.config import key, named, section
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.handoff import Handoff
from mae_pp_jax.core.optim import FROZEN, Rules
from mae_pp_jax.core.stage import Stage, StageConfig
from mae_pp_jax.data import augment, evals, fields, images, orders, pipeline, ragged, randaugment
from mae_pp_jax.data.evals import EvalConfig
from mae_pp_jax.data.faults import Faults
from mae_pp_jax.data.randaugment import RandAugment
from mae_pp_jax.data.source import DataConfig, open_source, tag_counts, training_order
from mae_pp_jax.models import vit
from mae_pp_jax.stages.shared import architecture, position_tables

log = logging.getLogger(__name__)


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
    evals: dict[str, EvalConfig] = named(EvalConfig, "evaluation sets, which name metrics", names=("test",))
    declared: DeclaredConfig = section(DeclaredConfig)
    model: vit.VitConfig = section(vit.VitConfig)

    def unused(self):
        data, found = self.data, {"data.max_tags": "only stage wsp reads hashtags of a batch"}
        if not data.crop.startswith("random_resized"):
            found |= dict.fromkeys(("data.crop_scale", "data.crop_ratio"), "only data.crop=random_resized uses it")
        if data.crop != "shift":
            found["data.shift"] = "only data.crop=shift uses it"
        if data.resample != "sqrt":
            found["data.resample_t"] = "only data.resample=sqrt uses it"
        if data.resample != "swag":
            found["data.resample_length"] = "only data.resample=swag uses it"
        return super().unused() | found

    @classmethod
    def inherit(cls, stated, part, source):
        return architecture.inherit(super().inherit(stated, part, source), source)

    def check_source(self, part, source, where):
        architecture.check(self.model, self.data, source, where)

    def recalled(self, meta):
        known = {kind: len(meta.get("identity", {}).get(field, ())) for kind, field in _NAMES.items()}
        known = {kind: number for kind, number in known.items() if number}
        return dataclasses.replace(self, declared=dataclasses.replace(self.declared, **known))

    @classmethod
    def upgrade(cls, mapping: Mapping) -> dict:
        """Runs of earlier versions had one evaluation set, in keys data.eval_…"""
        data = dict(mapping.get("data", {}))
        old = {new: data.pop(f"eval_{name}") for name, new in _ONE_SET.items() if f"eval_{name}" in data}
        return {**mapping, "data": data, "evals": {"test": old}} if old else dict(mapping)


_NAMES = {kind: field for field, kind in evals.NAMED.items()}  # key of config.declared → field
_ONE_SET = {"name": "data", "split": "split", "crop": "crop", "share": "share"}  # keys data.eval_… → of the set
_HASHTAG_DRAW = images.CROP_DRAWS  # place of the random number that chooses hashtags
# Of stages that train a head on a frozen encoder.
FROZEN_ENCODER = {"model.drop_path": "the encoder is frozen and always runs whole"}


class ImageStage(Stage):
    """A stage on single images: opens the data when it is first asked for, and makes batches and pixels of it.

    Attributes:
      evaluator_names: what the stage can measure on an evaluation set, by the names of `evals.NAME.evaluators`.
    """

    example: ClassVar = "image"
    evaluator_names: ClassVar[tuple[str, ...]] = ("averages",)
    config: ImageStageConfig
    named_by: str = "the training data"  # who says what `names` are

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

    @functools.cached_property
    def train_source(self):
        source = open_source(self.config.data, self.config.data.train_split)
        for name, found in _facts(source).items():
            stated = getattr(self.config.declared, name)
            if stated and stated != found:
                raise UserError(
                    f"config.declared.{name}: {stated}, but {self.config.data.name} has {found}; set it to {found} or 0, "
                    "or use the data that it was stated for"
                )
        return source

    @functools.cached_property
    def eval_sources(self) -> dict[str, fields.Source]:
        """The evaluation sets that are open, by name."""
        return {}

    def eval_source(self, name: str) -> fields.Source:
        """The records of an evaluation set, numbered as the model's outputs."""
        if name not in self.eval_sources:
            config = self.config.evals[name]
            known = evals.Known(self.names, self.named_by, tuple(self.targets()))
            self.eval_sources[name] = evals.open_eval_source(self.config.data, config, known, name)
        return self.eval_sources[name]

    def eval_labels(self) -> dict[str, np.ndarray]:
        """Name of an evaluation set → the classes that are right for its records; see `evals.right_answers`."""
        found = {name: evals.right_answers(self.eval_source(name)) for name in self.config.evals}
        for name, config in self.config.evals.items():
            if not evals.is_partial(config):  # of others it was told as they were opened
                evals.tell_absent(f"evals.{name}", found[name], self.names["label"])
        return found

    def eval_choices(self) -> dict[str, int]:
        """Name of an evaluation set that has only some of the classes → among how many the model chooses."""
        opened = {name: self.eval_source(name) for name in self.config.evals}
        return {name: len(next(s.column("allowed"))) for name, s in opened.items() if "allowed" in s.fields}

    @functools.cached_property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Field → what its numbers stand for in this model: as its checkpoint says, else as in the training data."""
        return evals.names_of(self.train_source)

    def identity(self):
        return {field: names for field, names in self.names.items() if names}

    def recall(self, meta):
        if identity := meta.get("identity"):
            self.names = {field: tuple(identity.get(field, ())) for field in evals.NAMED}
            self.named_by = "the checkpoint"
        elif self.targets() and meta["dataset"].get("fingerprint") != self.train_source.fingerprint:
            for field in self.names.keys() & self.targets().keys():
                if names := self.names[field]:
                    log.warning(
                        "the checkpoint does not name its %s: taken as the %s of %s in that order, %s … %s",
                        *(evals.NAMED[field], f"{len(names):,}", self.config.data.name, names[0], names[-1]),
                    )

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
        data = self.config.data
        return {
            **_identity(data.name, data.train_split, self.train_source),
            "evals": {name: self.evaluation_set(name) for name in self.config.evals},
        }

    def evaluation_set(self, name):
        config = self.config.evals.get(name)
        if config is None:
            return {}
        return _identity(config.data or self.config.data.name, config.split, self.eval_source(name))

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
        source, config = self.eval_source(name), self.config.evals[name]
        return self.eval_batches_of(source, config, self.eval_spec(name), self.config.global_batch)

    def eval_batches_of(
        self, source: fields.Source, config: EvalConfig, spec: pipeline.Spec, batch: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """One pass over the records of `source`, cropped as `config` says, `batch` at a time; `mask` is 0 on padding.

        Args:
          source: the records.
          config: of the evaluation set whose crop is taken.
          spec: what an example holds, as `example_spec`.
          batch: records per batch, over all processes.
        """
        return pipeline.eval_batches(
            source,
            lambda record: self.load_eval(record, config),
            spec,
            global_batch=batch,
            process_index=self.reader[0],
            process_count=self.reader[1],
            threads=self.config.data.threads,
            prefetch=self.config.data.prefetch,
            max_unreadable=self.config.data.max_unreadable,
            faults=self.faults,
        )

    def eval_passes(self, evaluator: str = "averages") -> dict[str, Callable[[], Iterator]]:
        """Name of an evaluation set that `evaluator`, one of `evaluator_names`, measures on → what opens a pass over it."""
        sets = (
            name for name, own in self.config.evals.items() if evaluator in (own.evaluators or self.evaluator_names)
        )
        return {name: functools.partial(self.eval_batches, name) for name in sets}

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

    def counts(self, batch):
        counted = {"data/unreadable": "unreadable", "data/hashtags_cut": "hashtags_cut"}
        return {full: jnp.sum(batch[name]) for full, name in counted.items() if name in batch}

    def check_counts(self, counts, examples):
        self.faults.check(counts["data/unreadable"], examples, self.config.data.max_unreadable)

    def targets(self) -> dict[str, tuple[int, ...]]:
        """What the loss reads besides pixels: name in the batch → shape of its int32 for one image."""
        return {}

    def answers(self, names, most):
        raise UserError(
            f"--workdir: a run of stage '{self.config.stage}' knows no classes; train one that does from it (classify, "
            "linear, low_shot or wsp, with --config.init_from.run), or write its features with embed"
        )

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

    def name_of(self, field: str, number: int) -> str:
        """What a number in a field of the data stands for, or the number itself where it has no name."""
        names = self.names[field]
        return names[number] if names else str(number)

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


def _identity(name: str, split: str, source: fields.Source) -> dict:
    """What tells a split of a dataset from others."""
    return dict(name=name, split=split, records=len(source), fingerprint=source.fingerprint)


def _facts(source) -> dict[str, int]:
    """What a data source has, under the names of `config.declared`."""
    return dict(
        records=len(source),
        classes=len(fields.names(source, "label")),
        hashtags=len(fields.names(source, "hashtags")),
    )
