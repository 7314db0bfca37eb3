"""Stage `linear`: a linear classifier on frozen features (facebookresearch/mae main_linprobe.py).

MAE puts a BatchNorm without learned scale before the classifier. The encoder is frozen, so its statistics are a
property of the data: they are measured once, on augmented training images, before the first step. There each device's
part of a batch is normalised by its own statistics in training, and by their running average in evaluation.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mae_pp_jax.core.config import key, section
from mae_pp_jax.core.functional import Model
from mae_pp_jax.core.optim import FROZEN, OptimConfig
from mae_pp_jax.evaluation import chance
from mae_pp_jax.evaluation.averages import Averages
from mae_pp_jax.evaluation.classify import accuracy, of_batch
from mae_pp_jax.models import vit
from mae_pp_jax.ops import losses
from mae_pp_jax.stages.shared import features
from mae_pp_jax.stages.shared.answers import ranking
from mae_pp_jax.stages.shared.image_config import FROZEN_ENCODER, ImageStageConfig
from mae_pp_jax.stages.shared.images import ImageStage


@dataclasses.dataclass(frozen=True)
class LinearStageConfig(ImageStageConfig):
    """Keys of the stage; the optimizer defaults are MAE's linear probe."""

    optim: OptimConfig = section(OptimConfig, name="lars", lr=0.1, weight_decay=0.0)
    statistics_images: int = key(16384, "augmented training images that measure the features' mean and variance", low=1)

    def unused(self):
        return super().unused() | FROZEN_ENCODER


class LinearStage(ImageStage):
    Config: ClassVar = LinearStageConfig
    config: LinearStageConfig

    def __init__(self, config: LinearStageConfig):
        super().__init__(config)
        self.encoder = Model(lambda rngs: vit.Encoder(config.model, self.image_size, rngs=rngs))
        self.width = vit.dimensions(config.model).width
        self.handoff = self.encoder_handoff(head=r"(head|feature_norm)/.*", frozen=True)

    def targets(self):
        return {"label": ()}

    def init(self, key):
        encoder_key, head_key = jax.random.split(key)
        # MAE's linear probe: normal with deviation 0.01.
        head = {
            "kernel": jax.random.normal(head_key, (self.width, self.classes)) / 100,
            "bias": jnp.zeros(self.classes),
        }
        norm = features.unit_norm(1, self.width)
        return {"encoder": self.encoder.init(encoder_key), "head": head, "feature_norm": norm}

    def prepare(self, params, mesh):
        images = min(self.config.statistics_images, self.records)
        batches = -(-images // self.config.global_batch)
        norm = features.measure(self.features, params, self.train_batches(0), batches, mesh)
        return {**params, "feature_norm": norm}

    def features(self, params, batch, keys=None):
        """Frozen features [batch, width] of a batch; flipped at random when keys [batch] are given."""
        pixels = self.pixels(batch, keys)
        return jax.lax.stop_gradient(self.encoder.apply(params["encoder"], pixels, method="features"))

    def logits(self, params, batch, keys=None):
        x = features.normalize(params["feature_norm"], self.features(params, batch, keys))[:, 0]
        return x @ params["head"]["kernel"] + params["head"]["bias"]

    def loss(self, params, batch, keys):
        logits = self.logits(params, batch, keys)
        loss = losses.softmax_cross_entropy(logits, jax.nn.one_hot(batch["label"], self.classes))
        ones = jnp.ones_like(loss)
        total = (jnp.sum(loss), jnp.sum(ones))
        return total, {"loss": total, **accuracy(logits, batch["label"], ones)}

    def evaluators(self):
        def test(params, batch):
            return of_batch(self.logits(params, batch), batch)

        return [Averages(name, test, batches) for name, batches in self.eval_passes().items()]

    def answers(self, names, most):
        return ranking(self, "label", names, most, self.logits)

    def chance(self):
        return chance.of_classes(self.classes, self.eval_labels(), self.eval_choices())

    def train_flops_per_example(self):
        forward = vit.forward_flops(self.config.model, self.image_size)
        return forward + 3 * 2.0 * self.width * self.classes

    def parameter_axes(self):
        return ((r"feature_norm/.*", (None, None)), *super().parameter_axes())

    def lr_rules(self):
        return ((r"(encoder|feature_norm)/.*", FROZEN), (r".*", 1.0))
