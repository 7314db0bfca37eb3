"""The records of stages on single images: sources, evaluation sets, what numbers stand for, batches."""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.stage import Stage
from mae_pp_jax.data import evals, fields, orders, pipeline
from mae_pp_jax.data.evals import EvalConfig
from mae_pp_jax.data.faults import Faults
from mae_pp_jax.data.source import open_source, training_order
from mae_pp_jax.stages.shared.image_config import ImageStageConfig

log = logging.getLogger(__name__)


class ImageRecords(Stage):
    """Opens the data when it is first asked for, and reads batches of it; what an example becomes is the subclass's.

    Attributes:
      evaluator_names: what the stage can measure on an evaluation set, by the names of `evals.NAME.evaluators`.
      draws: random numbers that `load` takes per example.
    """

    evaluator_names: ClassVar[tuple[str, ...]] = ("averages",)
    config: ImageStageConfig
    draws: int
    named_by: str = "the training data"  # who says what `names` are

    def load(self, record: dict, draws: np.ndarray) -> dict:
        """One training example, as `example_spec` declares it, from random numbers [draws] uniform in [0, 1)."""
        raise NotImplementedError

    def load_eval(self, record: dict, config: EvalConfig) -> dict:
        """One example of an evaluation set; as `load`, without randomness."""
        raise NotImplementedError

    def example_spec(self) -> pipeline.Spec:
        """What `load` gives: name → (shape, dtype) in one example."""
        raise NotImplementedError

    def eval_spec(self, name: str) -> pipeline.Spec:
        """What `load_eval` gives for an evaluation set."""
        raise NotImplementedError

    def targets(self) -> dict[str, tuple[int, ...]]:
        """What the loss reads besides pixels: name in the batch → shape of its int32 for one image."""
        return {}

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

    def counts(self, batch):
        counted = {"data/unreadable": "unreadable", "data/hashtags_cut": "hashtags_cut"}
        return {full: jnp.sum(batch[name]) for full, name in counted.items() if name in batch}

    def check_counts(self, counts, examples):
        self.faults.check(counts["data/unreadable"], examples, self.config.data.max_unreadable)

    def name_of(self, field: str, number: int) -> str:
        """What a number in a field of the data stands for, or the number itself where it has no name."""
        names = self.names[field]
        return names[number] if names else str(number)

    def describe_batch(self, step: int) -> str:
        batch = self.config.global_batch
        records = self.train_order.at(np.arange(step * batch, (step + 1) * batch))
        shown = ", ".join(self.train_source.describe(int(r)) for r in records[:3])
        return f"records {shown} and {len(records) - 3} more" if len(records) > 3 else f"records {shown}"


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
