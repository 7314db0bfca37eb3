"""Stage `classify`: full finetuning for image classification (facebookresearch/mae FINETUNE.md).

All weights train, each block at a learning rate that decays with its distance from the head. What regularises is
timm's: RandAugment (`data.randaugment`, on the host), random erasing, mixup or cutmix of each batch with itself in
reverse, label smoothing within the mixed target, drop path, dropout before the head.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core import rng
from mae_pp_jax.core.config import key, section
from mae_pp_jax.core.functional import Model
from mae_pp_jax.core.optim import NO_DECAY_ON_BIAS_AND_SCALE, OptimConfig
from mae_pp_jax.data import augment
from mae_pp_jax.evaluation import chance
from mae_pp_jax.evaluation.averages import Averages
from mae_pp_jax.evaluation.classify import accuracy, of_batch
from mae_pp_jax.models import layer_decay, vit
from mae_pp_jax.ops import losses
from mae_pp_jax.stages.shared.answers import ranking
from mae_pp_jax.stages.shared.image_config import ImageStageConfig
from mae_pp_jax.stages.shared.images import ImageStage


@dataclasses.dataclass(frozen=True)
class ClassifyStageConfig(ImageStageConfig):
    """Keys of the stage; defaults are those of MAE's finetuning of ViT-B."""

    model: vit.VitConfig = section(vit.VitConfig, pool="mean", drop_path=0.1)
    optim: OptimConfig = section(OptimConfig, lr=5e-4, b1=0.9, b2=0.999, weight_decay=0.05, min_lr=1e-6)
    layer_decay: float = key(0.65, "factor on the learning rate from one block to the one before it", low=0.0, high=1.0)
    label_smoothing: float = key(0.1, "share of the target spread over all classes", low=0.0, high=1.0)
    mixup: float = key(0.0, "alpha of the shares by which a batch is blended with itself in reverse; 0: never", low=0.0)
    cutmix: float = key(0.0, "alpha of the shares by which rectangles come from that partner; 0: never", low=0.0)
    mix_prob: float = key(1.0, "share of the batches that are mixed by mixup or cutmix", low=0.0, high=1.0)
    mix_switch: float = key(0.5, "share of cutmix among them, where both are on", low=0.0, high=1.0)
    erasing: float = key(0.0, "share of the images that lose a rectangle to noise", low=0.0, high=1.0)
    head_dropout: float = key(0.0, "share of the feature's channels dropped before the head", low=0.0, high=0.99)

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def unused(self):
        found = super().unused()
        if not self.mixes:
            found["mix_prob"] = "neither mixup nor cutmix is on"
        if not (self.mixup and self.cutmix):
            found["mix_switch"] = "it chooses between mixup and cutmix, and not both are on"
        return found


class ClassifyStage(ImageStage):
    Config: ClassVar = ClassifyStageConfig
    config: ClassifyStageConfig

    def __init__(self, config: ClassifyStageConfig):
        super().__init__(config)
        self.model = Model(
            lambda rngs: vit.Classifier(
                config.model,
                self.image_size,
                self.classes,
                head_init="small",
                dropout=config.head_dropout,
                rngs=rngs,
            )
        )
        self.handoff = self.encoder_handoff(head=r"head/.*")

    def targets(self):
        return {"label": ()}

    def init(self, key):
        return self.model.init(key)

    def pixels(self, batch, keys=None):
        images = super().pixels(batch, keys)
        if keys is None or not self.config.erasing:
            return images
        return augment.random_erase(images, keys, self.config.erasing)

    def augment(self, batch, keys):
        """Mixes the batch: its `image` is what the model takes, `share` how much of it is of `label`, the rest `partner`."""
        config = self.config
        if not config.mixes:
            return batch
        share, own = augment.mix_weights(
            rng.stream(keys[:1], "mix")[0],
            self.image_size,
            mixup=config.mixup,
            cutmix=config.cutmix,
            probability=config.mix_prob,
            switch=config.mix_switch,
        )
        reverse = {name: batch[name][::-1] for name in ("image", "label")}
        # Pixels of the partners are made twice, as that takes less than moving them as floats.
        mixed = own * self.pixels(batch, keys) + (1.0 - own) * self.pixels(reverse, keys[::-1])
        return {
            **batch,
            "image": mixed.astype(vit.compute_dtype(config.model)),
            "partner": reverse["label"],
            "share": jnp.broadcast_to(share, batch["label"].shape),
        }

    def sheet(self, batch, keys):
        mixed = self.augment(batch, keys)
        if not self.config.mixes:
            return super().sheet(mixed, keys)
        captions = []
        for share, *pair in zip(*(np.asarray(mixed[name]) for name in ("share", "label", "partner"))):
            (one, other) = (self.name_of("label", label) for label in pair)
            captions.append(f"{share:.0%} {one}, {1 - share:.0%} {other}")
        return {"as trained": self.uint8(mixed["image"])}, captions

    def loss(self, params, batch, keys):
        """Training accuracy is that for the label with the larger share of a mixed image."""
        mixed = self.config.mixes
        logits = self.model.apply(params, batch["image"] if mixed else self.pixels(batch, keys), keys, train=True)
        labels = batch["label"]
        targets = losses.smooth_labels(labels, self.classes, self.config.label_smoothing)
        if mixed:
            share = batch["share"][:, None]
            others = losses.smooth_labels(batch["partner"], self.classes, self.config.label_smoothing)
            targets = share * targets + (1.0 - share) * others
            labels = jnp.where(batch["share"] >= 0.5, labels, batch["partner"])
        loss = losses.softmax_cross_entropy(logits, targets)
        ones = jnp.ones_like(loss)
        total = (jnp.sum(loss), jnp.sum(ones))
        return total, {"loss": total, **accuracy(logits, labels, ones)}

    def logits(self, params, batch):
        """Logits [batch, classes] of images as they are, without what regularises the training."""
        return self.model.apply(params, self.pixels(batch))

    def evaluators(self):
        def test(params, batch):
            return of_batch(self.logits(params, batch), batch)

        return [Averages(name, test, batches) for name, batches in self.eval_passes().items()]

    def answers(self, names, most):
        return ranking(self, "label", names, most, self.logits)

    def chance(self):
        return chance.of_classes(self.classes, self.eval_labels(), self.eval_choices())

    def train_flops_per_example(self):
        return 3 * vit.forward_flops(self.config.model, self.image_size, classes=self.classes)

    def lr_rules(self):
        depth = vit.dimensions(self.config.model).depth
        return (*self.fixed_positions(), *layer_decay.factors(self.config.layer_decay, depth))

    def decay_rules(self):
        # timm's no_weight_decay: class token and positions are not decayed in finetuning.
        return ((r"encoder/(cls_token|pos_embed)", 0.0), *NO_DECAY_ON_BIAS_AND_SCALE)
