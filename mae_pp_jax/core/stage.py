"""The contract between a stage and the one training loop.

A stage is an object that says what is trained on what: how parameters start, what the loss of a batch is, who
evaluates. Loop, sharding, resume, logging and faults know nothing more about it.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from mae_pp_jax.core import storage
from mae_pp_jax.core.config import key, section
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.handoff import Handoff, Locate
from mae_pp_jax.core.optim import NO_DECAY_ON_BIAS_AND_SCALE, OptimConfig, Rules
from mae_pp_jax.core.partition import Axes, MeshConfig

Params = Mapping[str, Any]
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name → (sum, weight)


@dataclasses.dataclass(frozen=True)
class InitFromConfig:
    """Where the weights come from; empty: random initialisation.

    A stage whose model has several parts, each with a source of its own, declares a dataclass with one such section for
    each part in its place, and its `handoff` by the same names.
    """

    run: str = key(
        "",
        "run whose weights this stage starts from: its folder, a released name (convert --list) or a file of weights",
        by_content=True,
    )
    step: str = key("last", "its checkpoint: 'last' or a step")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and what."""

    every: str = key("10%", "length between checkpoints; one is always written at the end")
    keep: int = key(2, "newest checkpoints kept", low=1)
    frozen: str = key(
        "auto",
        "whether frozen weights that came unchanged from init_from.run are written again, or that run is referred to, "
        "which must then stay as it is; auto: reference where adapters are trained, else copy",
        choices=("auto", "copy", "reference"),
    )


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """Keys that every stage has."""

    stage: str = key(doc="name of the stage, as `stages/registry.py` lists it")
    seed: int = key(0, "seed of initialisation, order of records and all other draws", low=0)
    train_for: str = key("100 epochs", "length of the training: epochs, steps or examples")
    global_batch: int = key(256, "examples per update, over all devices and hosts", low=1)
    microbatches: int = key(
        1, "parts of the batch that an update is computed in, in turn, to need less memory", low=1, restart=True
    )
    log_every: str = key("1%", "length between rows of training metrics")
    eval_every: str = key("10%", "length between evaluations; one is always done at the end")
    optim: OptimConfig = section(OptimConfig)
    init_from: InitFromConfig = section(InitFromConfig)
    mesh: MeshConfig = section(MeshConfig, restart=True)
    checkpoint: CheckpointConfig = section(CheckpointConfig, restart=True)
    profile: bool = key(False, "leave a profiler trace of ten steps in WORKDIR/profile", restart=True)
    tensorboard: bool = key(True, "write TensorBoard files into WORKDIR/tensorboard", restart=True)

    @classmethod
    def upgrade(cls, mapping: Mapping) -> dict:
        """The content of a run's config.json with the keys of today, where earlier versions of the code had others."""
        return dict(mapping)

    @classmethod
    def inherit(cls, stated: Mapping, part: str, source: Mapping) -> dict:
        """The keys that a config states, and those it leaves open that have to be as in the run it starts from.

        Args:
          stated: nested dict of keys.
          part: of the model, by its name in `init_from`; "" where there is one source.
          source: config of the run, which may be one of another stage.
        """
        del part, source
        return dict(stated)

    def check_source(self, part: str, source: Mapping, where: str) -> None:
        """Raises `UserError` where the weights of a run cannot fit this config.

        Args:
          part: as for `inherit`.
          source: config of the run.
          where: the run and the key that names it, for messages.
        """

    def recalled(self, meta: Mapping[str, Any]):
        """This config with what the JSON part of a checkpoint (`checkpoint.meta`) knows of the data it was trained on."""
        del meta
        return self

    def unused(self) -> dict[str, str]:
        """Keys that have no effect in this stage or beside the values of others: dotted key → why.

        A new run that sets one of them is refused, as its user expects an effect. Keys that only say what a run
        needs (memory, threads) or what its data is are not among them.
        """
        found = {}
        if self.optim.name != "adamw":
            found |= dict.fromkeys(("optim.b2", "optim.moment_dtype"), "only optim.name=adamw uses it")
        if self.optim.shape == "constant":
            found["optim.min_lr"] = "only optim.shape=cosine falls to it"
        if isinstance(self.init_from, InitFromConfig) and not self.init_from.run:
            found["init_from.step"] = "it chooses a checkpoint of init_from.run, which is empty"
        return found


class Drawing(Protocol):
    """What an evaluator makes for people to look at."""

    def file(self, name: str, step: int) -> tuple[str, bytes]:
        """Where it is kept, relative to the run's folder, and the content of that file."""

    def show(self, writer, name: str, step: int) -> None:
        """Shows itself in TensorBoard through clu's `writer`."""


class Evaluator(Protocol):
    """Measures parameters on data it holds; its `name` is that of the evaluation set."""

    name: str

    def run(self, params: Params, mesh: Mesh) -> dict[str, float | Drawing]:
        """`SET/measure` → number, or name → drawing."""


class Answers(Protocol):
    """What a run says of examples without targets, for `predict`.

    Attributes:
      columns: what the values of an answer are called.
    """

    columns: tuple[str, ...]

    def load(self, content: bytes) -> dict[str, np.ndarray]:
        """The content of a file as an example, arrays of fixed shapes by name."""

    def compute(self, params: Params, batch: Mapping[str, jax.Array]) -> Any:
        """A pytree of arrays [batch, …] with what is to be told of each example; traceable."""

    def tell(self, values: Any) -> list[tuple]:
        """The answers on one example, the best first, each with a value for every column.

        Args:
          values: of one example, what `compute` gave, as numpy arrays [...].
        """


class Stage:
    """Base of the stages; a subclass is read top to bottom in `stages/NAME.py`.

    Attributes:
      Config: the stage's config dataclass.
      example: what one example is called where people read about it, such as "clip", and a unit of
        lengths.
      divisible: whether the loss of a batch is the sum over its microbatches. Where each example is compared with all
        others of the batch it is not, and `microbatches` must be 1.
      dealt: independent models whose examples must be equally many in each device's part of a microbatch.
      refers: whether checkpoints refer to the run that frozen weights came from, with `checkpoint.frozen=auto`.
      trained: whether there is anything to train. A stage that is not has its initial weights as its result, random or
        from `init_from`; it needs no loss and no batches.
      config: the resolved config.
      records: training records in one epoch.
      dataset: what is trained and evaluated on, for the lineage and to refuse a resume on other data: name, split,
        records and fingerprint, and in `evals` the same of each evaluation set.
      handoff: which weights of an earlier stage this one takes; by part where `config.init_from` has several.
      reader: the part of every global batch that this process reads, as (index, number of parts); who trains or
        evaluates on a mesh of many processes sets it to `partition.reader(mesh)`.
      locate: finds the runs that `config.init_from` names; who knows other names than folders sets it.
    """

    Config: ClassVar[type[StageConfig]]
    example: ClassVar[str] = "example"
    divisible: bool = True
    dealt: int = 1
    refers: bool = False
    trained: ClassVar[bool] = True
    config: StageConfig
    records: int
    dataset: dict[str, Any]
    handoff: Handoff | Mapping[str, Handoff]
    reader: tuple[int, int] = (0, 1)
    locate: Locate = staticmethod(storage.path)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, a nested dict; traceable."""
        raise NotImplementedError

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], keys: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], Metrics]:
        """((sum, weight) of the loss, metrics) of a batch or, if `divisible`, of a microbatch; traceable.

        The update descends sum / weight over the global batch, however many microbatches it is computed in. Therefore
        the randomness of an example comes from its own key alone.

        Args:
          params: all parameters.
          batch: name → array with one row per example.
          keys: random keys [batch], one per example.
        """
        raise NotImplementedError

    def augment(self, batch: Mapping[str, jax.Array], keys: jax.Array) -> Mapping[str, jax.Array]:
        """What needs the batch as a whole, such as a partner for each example; traceable.

        Called once on the global batch, before it is cut into the microbatches that `loss` gets.

        Args:
          batch: name → array with one row per example.
          keys: random keys [batch], the same that `loss` gets; draw from a stream of your own (`core.rng`).
        """
        del keys
        return batch

    def parameter_axes(self) -> Sequence[tuple[str, Axes]]:
        """Ordered (pattern, axes) over parameter paths: how each axis is split or stacked; see `core.partition`.

        Models declare these tables beside their modules. Small parameters that no rule covers stay whole.
        """
        return ()

    @property
    def model_batch(self) -> int:
        """Examples per update that one model sees; fewer than the batch where it is dealt out to independent models."""
        return self.config.global_batch

    def counts(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What of a global batch is counted over the whole run: full name (`data/unreadable`) → int32; traceable."""
        del batch
        return {}

    def check_counts(self, counts: Mapping[str, int], examples: int) -> None:
        """Called at each log row with the counts of the run so far; raises `RunStopped` where it should not go on.

        Args:
          counts: name → number since the first step.
          examples: examples since the first step.
        """

    def evaluators(self) -> Sequence[Evaluator]:
        raise NotImplementedError

    def chance(self) -> dict[str, float]:
        """What guessing reaches without a look at the examples: name of a metric → level; {} where that is unknown."""
        return {}

    def evaluation_set(self, name: str) -> dict[str, Any]:
        """Dataset, split, records and fingerprint of what the evaluators of this name measure on; {} if unknown."""
        del name
        return {}

    def documents(self) -> dict[str, str]:
        """Texts that are kept in the run's folder from its start: relative path → content."""
        return {}

    def identity(self) -> dict[str, Sequence[str]]:
        """What the numbers in the data stand for, such as classes: field → names. Checkpoints keep it."""
        return {}

    def recall(self, meta: Mapping[str, Any]) -> None:
        """Called before a checkpoint is evaluated with its JSON part (`checkpoint.meta`), in which `identity` is.

        From here on the numbers of evaluation sets stand for the same names as when it was trained.
        """

    def answers(self, names: Mapping[str, Sequence[str]], most: int) -> Answers:
        """What this run says of new examples.

        Args:
          names: field → what its numbers stand for, as the checkpoint says (`identity`).
          most: answers to tell of an example.

        Raises:
          UserError: it says nothing of them.
        """
        raise UserError(
            f"--workdir: a run of stage '{self.config.stage}' has no answers for a new {self.example}; give one that was "
            "trained on targets"
        )

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """The rows of `reader` of batch `start_step`, `start_step` + 1, …; a pure function of (seed, step)."""
        raise NotImplementedError

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of one global batch."""
        raise NotImplementedError

    def describe_batch(self, step: int) -> str:
        """Which records made the batch of a step, for the message of a non-finite loss."""
        raise NotImplementedError

    def train_flops_per_example(self) -> float:
        """Model FLOPs of one training step divided by the batch: matrix products, forward and backward."""
        raise NotImplementedError

    def lr_rules(self) -> Rules:
        """Factors on the learning rate by path, or `optim.FROZEN`."""
        return ((r".*", 1.0),)

    def decay_rules(self) -> Rules:
        """Factors on the weight decay by path."""
        return NO_DECAY_ON_BIAS_AND_SCALE

    def prepare(self, params: Params, mesh: Mesh) -> Params:
        """Called once on a fresh run after the handoff, for values computed from data with the received weights."""
        del mesh
        return params
