"""Stage `mae`: masked autoencoder pre-pretraining (He et al. 2021; Singh et al. 2023, section 3). No labels are read.

The encoder sees a quarter of the patches; a decoder of its own width predicts the rest; the loss is the squared error
on masked patches, each normalised by its own mean and deviation.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from mae_pp_jax.core.config import key, section
from mae_pp_jax.core.functional import Model
from mae_pp_jax.core.optim import FROZEN, OptimConfig
from mae_pp_jax.data import augment
from mae_pp_jax.evaluation.averages import Averages
from mae_pp_jax.evaluation.reconstruct import Reconstructions
from mae_pp_jax.models import mae, masking, vit
from mae_pp_jax.models.mae import Mae, MaeConfig, mae_forward_flops
from mae_pp_jax.models.patches import patchify, unpatchify
from mae_pp_jax.stages.shared.image_config import ImageStageConfig
from mae_pp_jax.stages.shared.images import ImageStage


@dataclasses.dataclass(frozen=True)
class MaeStageConfig(ImageStageConfig):
    """Keys of the stage; optimizer defaults are those of facebookresearch/mae PRETRAIN.md."""

    mae: MaeConfig = section(MaeConfig)
    model: vit.VitConfig = section(vit.VitConfig, positions="sincos")
    optim: OptimConfig = section(OptimConfig, lr=1.5e-4, b1=0.9, b2=0.95, weight_decay=0.05)
    pictures: int = key(8, "evaluation images whose reconstruction is drawn; 0: none", low=0)

    @classmethod
    def inherit(cls, stated, part, source):
        stated = super().inherit(stated, part, source)
        # The decoder goes along where there is one; how much is masked and what it predicts is for each run to say.
        decoder = {key: value for key, value in source.get("mae", {}).items() if key.startswith("decoder_")}
        return {**stated, "mae": {**decoder, **stated.get("mae", {})}}

    def unused(self):
        return super().unused() | {"model.pool": "nothing is pooled in stage mae"}


class MaeStage(ImageStage):
    Config: ClassVar = MaeStageConfig
    evaluator_names: ClassVar = ("averages", "reconstruction")
    config: MaeStageConfig

    def __init__(self, config: MaeStageConfig):
        super().__init__(config)
        self.model = Model(lambda rngs: Mae(config.model, config.mae, self.image_size, rngs=rngs))
        encoder = self.encoder_handoff(head=r"decoder/.*")
        self.handoff = dataclasses.replace(
            encoder,
            stages=("mae", "encoder"),
            move=((r"((encoder|decoder)/.*)", r"\1"),),
            # The decoder's table, which is always fixed, goes along with the encoder's.
            resize=(*encoder.resize, (r"decoder/pos_embed", lambda meta: (encoder.resize[0][1](meta)[0], ""))),
        )

    def init(self, key):
        return self.model.init(key)

    def sheet(self, batch, keys):
        pixels, patch = self.pixels(batch, keys), vit.dimensions(self.config.model).patch
        visible = mae.visible_patches(self.config.mae, self._patches())
        _, mask = masking.select_visible(masking.draw(keys, self._patches()), visible)
        seen = unpatchify(
            patchify(pixels, patch) * (1 - mask[:, :, None]), patch, vit.grid(self.config.model, self.image_size)
        )
        return {"whole": self.uint8(pixels), "visible": self.uint8(seen)}, []

    def loss(self, params, batch, keys):
        out = self.model.apply(params, self.pixels(batch, keys), keys, train=True)
        total = _sum(out["loss"], jnp.ones_like(out["loss"]))
        return total, {"loss": total}

    def evaluators(self):
        found = [Averages(name, self._test, batches) for name, batches in self.eval_passes().items()]
        for batches in list(self.eval_passes("reconstruction").values())[:1]:  # pictures of one set are enough
            if self.config.pictures:
                found.append(Reconstructions(self._reconstruct, batches, self.config.pictures))
        return found

    def chance(self):
        # A normalised patch has mean 0 and variance 1: predicting the mean everywhere leaves the variance.
        names = ("train", *self.config.evals)
        return {f"{name}/loss": 1.0 for name in names} if self.config.mae.normalize_target else {}

    def train_flops_per_example(self):
        return 3 * mae_forward_flops(self.config.model, self.config.mae, self.image_size)

    def parameter_axes(self):
        return (*vit.PARAMETER_AXES, *mae.PARAMETER_AXES)

    def lr_rules(self):
        # Both position tables are fixed in MAE and not given to the optimizer.
        return ((r"decoder/pos_embed", FROZEN), *self.fixed_positions(), (r".*", 1.0))

    def _test(self, params, batch):
        # One mask per image for all evaluations of all runs, so that their curves compare.
        noise = jax.vmap(lambda r: jax.random.uniform(jax.random.key(r), (self._patches(),)))(batch["record"])
        out = self.model.apply(params, self.pixels(batch), noise=noise)
        return {"loss": _sum(out["loss"], batch["mask"])}

    def _patches(self) -> int:
        return math.prod(vit.grid(self.config.model, self.image_size))

    def _reconstruct(self, params, batch):
        keys = jax.random.split(jax.random.key(0), batch["image"].shape[0])
        out = self.model.apply(params, self.pixels(batch), keys, method="reconstruct")
        data = self.config.data
        pictures = {name: augment.denormalize(images, data.mean, data.std) for name, images in out.items()}
        return {"original": batch["image"], **pictures}


def _sum(values: jax.Array, weights: jax.Array):
    return jnp.sum(values * weights), jnp.sum(weights)
