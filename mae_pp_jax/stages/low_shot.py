"""Stage `low_shot`: classifiers from k labelled images per class on frozen features (Singh et al. 2023, section 4.2).

`splits` independent draws of k images per class are trained side by side in one run, each with a head of its own;
reported are mean and standard deviation over the draws.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core.config import key, section
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import Model
from mae_pp_jax.core.optim import FROZEN, OptimConfig
from mae_pp_jax.data import fields, orders
from mae_pp_jax.data.source import Subset, digest, few_shot_indices
from mae_pp_jax.evaluation import chance
from mae_pp_jax.evaluation.classify import accuracy
from mae_pp_jax.evaluation.low_shot import OverSplits
from mae_pp_jax.models import vit
from mae_pp_jax.ops import losses
from mae_pp_jax.stages.shared import features
from mae_pp_jax.stages.shared.answers import ranking
from mae_pp_jax.stages.shared.images import FROZEN_ENCODER, ImageStage, ImageStageConfig


@dataclasses.dataclass(frozen=True)
class LowShotStageConfig(ImageStageConfig):
    """Keys of the stage. The paper's own protocol is in its appendix, which is not public; these are our choice."""

    optim: OptimConfig = section(OptimConfig, name="sgd", lr=0.1, weight_decay=1e-4)
    shots: int = key(5, "labelled images per class; a class that has fewer gives all", low=1)
    splits: int = key(5, "independent draws of the labelled images", low=1)

    def unused(self):
        return super().unused() | FROZEN_ENCODER | {"data.resample": "each split reads all its images equally often"}


class LowShotStage(ImageStage):
    Config: ClassVar = LowShotStageConfig
    config: LowShotStageConfig

    def __init__(self, config: LowShotStageConfig):
        super().__init__(config)
        if config.global_batch % config.splits:
            raise UserError(
                f"config.global_batch: {config.global_batch} does not divide over {config.splits} splits; "
                f"use a multiple of config.splits"
            )
        self.encoder = Model(lambda rngs: vit.Encoder(config.model, self.image_size, rngs=rngs))
        self.width = vit.dimensions(config.model).width
        self.handoff = self.encoder_handoff(head=r"(heads|feature_norm)/.*", frozen=True)

    @functools.cached_property
    def subsets(self) -> list[Subset]:
        """The labelled images of each split."""
        labels, shots = fields.labels(self.train_source), self.config.shots
        return [Subset(self.train_source, few_shot_indices(labels, shots, seed=seed)) for seed in self._seeds()]

    def _seeds(self) -> list[int]:
        """A seed for each split, which does not depend on how many others there are."""
        sequences = (np.random.SeedSequence((self.config.seed, split)) for split in range(self.config.splits))
        return [int(sequence.generate_state(1)[0]) for sequence in sequences]

    @property
    def model_batch(self):
        return self.config.global_batch // self.config.splits

    @property
    def records(self):
        if self.config.declared.classes:
            return self.config.splits * self.config.shots * self.config.declared.classes
        return sum(map(len, self.subsets))

    @property
    def dataset(self):
        drawn = digest(*(subset.fingerprint for subset in self.subsets))
        return {**super().dataset, "shots": self.config.shots, "splits": self.config.splits, "drawn": drawn}

    def targets(self):
        return {"label": ()}

    def init(self, key):
        # All heads start at zero: the problem is convex, the draw of the images is what differs between splits.
        splits = self.config.splits
        heads = {"kernel": jnp.zeros((splits, self.width, self.classes)), "bias": jnp.zeros((splits, self.classes))}
        norm = features.unit_norm(splits, self.width)
        return {"encoder": self.encoder.init(key), "heads": heads, "feature_norm": norm}

    def prepare(self, params, mesh):
        batches = -(-self.records // self.config.global_batch)
        norm = features.measure(self.features, params, self.train_batches(0), batches, mesh, self.config.splits)
        return {**params, "feature_norm": norm}

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """The same number of images from each split, in turn; `group` names the split of an image."""
        streams = [
            self.batches_of(subset, orders.Shuffled(len(subset), seed), seed, start_step, share=self.config.splits)
            for seed, subset in zip(self._seeds(), self.subsets, strict=True)
        ]
        for parts in zip(*streams, strict=True):
            # In turn, so that a batch has the same order however many processes read it.
            group = np.tile(np.arange(len(parts), dtype=np.int32), len(parts[0]["record"]))
            joined = {
                name: np.stack([part[name] for part in parts], axis=1).reshape(-1, *parts[0][name].shape[1:])
                for name in ("image", "label", "unreadable")
            }
            yield {**joined, "group": group}

    def batch_spec(self):
        group = jax.ShapeDtypeStruct((self.config.global_batch,), jnp.int32)
        return {**super().batch_spec(), "group": group}

    def describe_batch(self, step):
        return f"step {step} of {self.config.splits} splits of {self.config.shots} images per class"

    def augment(self, batch, keys):
        # An example takes the key of its place in its own split: more splits change none of the others' numbers.
        return {**batch, "key": keys.reshape(self.config.splits, -1).T.reshape(-1)}

    def features(self, params, batch, keys=None):
        """Frozen features [batch, width] of a batch; flipped at random when keys [batch] are given."""
        pixels = self.pixels(batch, keys)
        return jax.lax.stop_gradient(self.encoder.apply(params["encoder"], pixels, method="features"))

    def logits(self, params, batch, keys=None):
        """Logits of every split's head, [batch, splits, classes]."""
        x = features.normalize(params["feature_norm"], self.features(params, batch, keys))
        return jnp.einsum("bsd,sdc->bsc", x, params["heads"]["kernel"]) + params["heads"]["bias"]

    def loss(self, params, batch, keys):
        del keys
        own = jax.nn.one_hot(batch["group"], self.config.splits)
        logits = jnp.einsum("bsc,bs->bc", self.logits(params, batch, batch["key"]), own)
        loss = losses.softmax_cross_entropy(logits, jax.nn.one_hot(batch["label"], self.classes))
        ones = jnp.ones_like(loss)
        # Heads are independent: each one's gradient is that of the mean over its own images.
        metrics = {"loss": (jnp.sum(loss), jnp.sum(ones)), **accuracy(logits, batch["label"], ones)}
        return (jnp.sum(loss), jnp.sum(ones) / self.config.splits), metrics

    def evaluators(self):
        def test(params, batch):
            logits = self.logits(params, batch)
            return jax.vmap(lambda split: accuracy(split, batch["label"], batch["mask"]), in_axes=1)(logits)

        return [OverSplits(name, test, batches) for name, batches in self.eval_passes().items()]

    def answers(self, names, most):
        return ranking(self, "label", names, most, self.logits, axis=(1,))

    def chance(self):
        found = chance.of_classes(self.classes, self.eval_labels())
        return {name: level for name, level in found.items() if name == "train/loss" or name.endswith("/accuracy")}

    def train_flops_per_example(self):
        forward = vit.forward_flops(self.config.model, self.image_size)
        return forward + 3 * 2.0 * self.width * self.classes * self.config.splits

    def parameter_axes(self):
        heads = ((r"heads/kernel", ("splits", None, None)), (r"(heads|feature_norm)/.*", ("splits", None)))
        return (*heads, *super().parameter_axes())

    def lr_rules(self):
        return ((r"(encoder|feature_norm)/.*", FROZEN), (r".*", 1.0))
