"""Stage `wsp`: weakly supervised pretraining on hashtags (Mahajan et al. 2018; SWAG; Singh et al. 2023, section 3).

Softmax cross-entropy over the hashtag vocabulary with target 1/K on each of the K hashtags of an image, mean over the
images that carry at least one. It starts from the encoder of an MAE run, or from random weights.
"""

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp

from mae_pp_jax.core.config import key, section
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import Model
from mae_pp_jax.core.optim import OptimConfig
from mae_pp_jax.evaluation import chance
from mae_pp_jax.evaluation.averages import Averages
from mae_pp_jax.evaluation.tags import TagMap, top_tag_hits
from mae_pp_jax.models import vit
from mae_pp_jax.ops import losses
from mae_pp_jax.stages.shared.answers import ranking
from mae_pp_jax.stages.shared.image_config import ImageStageConfig
from mae_pp_jax.stages.shared.images import ImageStage

_COUNTED = 1_000_000  # training records whose hashtags are read, 20 s, to know the commonest


@dataclasses.dataclass(frozen=True)
class WspStageConfig(ImageStageConfig):
    """Keys of the stage; the optimizer defaults are SWAG's as far as they are known (see the recipe)."""

    optim: OptimConfig = section(OptimConfig, lr=4e-4, lr_batch=8192, b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0)
    map_positives: int = key(5, "held-out images that a hashtag needs to count in tag mAP; 0: not measured", low=0)
    map_images: int = key(10_000, "tag mAP is measured on this many held-out images, the first ones", low=1)

    def unused(self):
        found = super().unused()
        del found["data.max_tags"]
        return found if self.map_positives else found | {"map_images": "map_positives=0 measures no tag mAP"}


class WspStage(ImageStage):
    Config: ClassVar = WspStageConfig
    evaluator_names: ClassVar = ("averages", "tag_map")
    config: WspStageConfig

    def __init__(self, config: WspStageConfig):
        super().__init__(config)
        # The head starts at zero, as SWAG's does.
        self.model = Model(
            lambda rngs: vit.Classifier(config.model, self.image_size, self.vocabulary, head_init="zeros", rngs=rngs)
        )
        self.handoff = self.encoder_handoff(head=r"head/.*")

    @property
    def vocabulary(self) -> int:
        """Number of hashtags."""
        vocabulary = self.fact("hashtags")
        if not vocabulary and "hashtags" in self.train_source.fields:
            raise UserError(
                f"config.data.vocabulary: the hashtags of {self.config.data.name} are text; make a vocabulary with "
                f"python -m mae_pp_jax data hashtags --name={self.config.data.name} --to=FILE and name it here"
            )
        if not vocabulary:
            raise UserError(
                f"config.data.hashtags: {self.config.data.name} has no hashtags; use a dataset that has them, or "
                "data.hashtags=simulated to draw noisy ones from the class labels"
            )
        return vocabulary

    def targets(self):
        return {"hashtags": (self.config.data.max_tags,), "hashtags_cut": ()}

    def init(self, key):
        return self.model.init(key)

    def sheet(self, batch, keys):
        pictures, _ = super().sheet(batch, keys)
        tags = ([self.name_of("hashtags", tag) for tag in ids if tag >= 0] for ids in batch["hashtags"])
        return pictures, [" ".join(f"#{tag}" for tag in found) or "no hashtag" for found in tags]

    def loss(self, params, batch, keys):
        logits = self.model.apply(params, self.pixels(batch, keys), keys, train=True)
        metrics = self._measure(logits, batch["hashtags"], jnp.ones(logits.shape[0]))
        return metrics["loss"], metrics

    def logits(self, params, batch):
        """Logits [batch, hashtags] of images as they are."""
        return self.model.apply(params, self.pixels(batch))

    def evaluators(self):
        def test(params, batch):
            return self._measure(self.logits(params, batch), batch["hashtags"], batch["mask"])

        found, config = [Averages(name, test, batches) for name, batches in self.eval_passes().items()], self.config
        for name, batches in self.eval_passes("tag_map").items() if config.map_positives else ():
            limits = dict(positives=config.map_positives, images=config.map_images)
            found.append(TagMap(name, self.logits, batches, functools.partial(self._tags, name), **limits))
        return found

    def _tags(self, name):
        """The hashtags of all records of an evaluation set."""
        return self.eval_source(name).column("hashtags")

    def answers(self, names, most):
        return ranking(self, "hashtags", names, most, self.logits)

    def chance(self):
        train = {"train": self.train_source.column("hashtags")} if len(self.train_source) <= _COUNTED else {}
        evals = {name: self._tags(name) for name in self.config.evals}
        return chance.of_hashtags(self.vocabulary, train | evals)

    def train_flops_per_example(self):
        return 3 * vit.forward_flops(self.config.model, self.image_size, classes=self.vocabulary)

    def lr_rules(self):
        return (*self.fixed_positions(), (r".*", 1.0))

    def _measure(self, logits, hashtags, mask):
        """Loss, precision of the most probable hashtag (the share of images that carry it), share of untagged images."""
        targets, weight = losses.hashtag_targets(hashtags, self.vocabulary)
        weight = weight * mask
        loss = losses.softmax_cross_entropy(logits, targets)
        hit = top_tag_hits(logits, hashtags)
        return {
            "loss": (jnp.sum(loss * weight), jnp.sum(weight)),
            "tag_precision": (jnp.sum(hit * weight), jnp.sum(weight)),
            "untagged": (jnp.sum(mask) - jnp.sum(weight), jnp.sum(mask)),
        }
