"""Stage `classify`: full finetuning for image classification (facebookresearch/mae FINETUNE.md).

All weights train, each block at a learning rate that decays with its distance from the head; drop path and label
smoothing regularise.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mae_pp_jax.core.config import key, section
from mae_pp_jax.core.functional import Model
from mae_pp_jax.core.optim import NO_DECAY_ON_BIAS_AND_SCALE, OptimConfig
from mae_pp_jax.evaluation import chance
from mae_pp_jax.evaluation.averages import Averages
from mae_pp_jax.evaluation.classify import accuracy
from mae_pp_jax.models import layer_decay, vit
from mae_pp_jax.ops import losses
from mae_pp_jax.stages.shared.answers import ranking
from mae_pp_jax.stages.shared.images import ImageStage, ImageStageConfig


@dataclasses.dataclass(frozen=True)
class ClassifyStageConfig(ImageStageConfig):
    """Keys of the stage; defaults are those of MAE's finetuning of ViT-B."""

    model: vit.VitConfig = section(vit.VitConfig, pool="mean", drop_path=0.1)
    optim: OptimConfig = section(OptimConfig, lr=5e-4, b1=0.9, b2=0.999, weight_decay=0.05, min_lr=1e-6)
    layer_decay: float = key(0.65, "factor on the learning rate from one block to the one before it", low=0.0, high=1.0)
    label_smoothing: float = key(0.1, "share of the target spread over all classes", low=0.0, high=1.0)


class ClassifyStage(ImageStage):
    Config: ClassVar = ClassifyStageConfig
    config: ClassifyStageConfig

    def __init__(self, config: ClassifyStageConfig):
        super().__init__(config)
        self.model = Model(
            lambda rngs: vit.Classifier(config.model, self.image_size, self.classes, head_init="small", rngs=rngs)
        )
        self.handoff = self.encoder_handoff(head=r"head/.*")

    def targets(self):
        return {"label": ()}

    def init(self, key):
        return self.model.init(key)

    def loss(self, params, batch, keys):
        logits = self.model.apply(params, self.pixels(batch, keys), keys, train=True)
        targets = losses.smooth_labels(batch["label"], self.classes, self.config.label_smoothing)
        loss = losses.softmax_cross_entropy(logits, targets)
        ones = jnp.ones_like(loss)
        total = (jnp.sum(loss), jnp.sum(ones))
        return total, {"loss": total, **accuracy(logits, batch["label"], ones)}

    def logits(self, params, batch):
        """Logits [batch, classes] of images as they are, without what regularises the training."""
        return self.model.apply(params, self.pixels(batch))

    def evaluators(self):
        def test(params, batch):
            logits = self.logits(params, batch)
            loss = losses.softmax_cross_entropy(logits, jax.nn.one_hot(batch["label"], self.classes))
            mask = batch["mask"]
            return {"loss": (jnp.sum(loss * mask), jnp.sum(mask)), **accuracy(logits, batch["label"], mask)}

        return [Averages(name, test, batches) for name, batches in self.eval_passes().items()]

    def answers(self, names, most):
        return ranking(self, "label", names, most, self.logits)

    def chance(self):
        return chance.of_classes(self.classes, self.eval_labels())

    def train_flops_per_example(self):
        return 3 * vit.forward_flops(self.config.model, self.image_size, classes=self.classes)

    def lr_rules(self):
        depth = vit.dimensions(self.config.model).depth
        return (*self.fixed_positions(), *layer_decay.factors(self.config.layer_decay, depth))

    def decay_rules(self):
        # timm's no_weight_decay: class token and positions are not decayed in finetuning.
        return ((r"encoder/(cls_token|pos_embed)", 0.0), *NO_DECAY_ON_BIAS_AND_SCALE)
