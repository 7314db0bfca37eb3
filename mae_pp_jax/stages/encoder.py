"""Stage `encoder`: an imported encoder without head or decoder. It is not trained: other stages start from it."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from mae_pp_jax.core.config import key
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import Model
from mae_pp_jax.models import vit
from mae_pp_jax.stages.shared.images import ImageStage, ImageStageConfig


@dataclasses.dataclass(frozen=True)
class EncoderStageConfig(ImageStageConfig):
    """Keys of the stage; `model.pool=mean` says that the encoder ends in `fc_norm`, `cls` in `norm`."""

    projection: int = key(0, "width of a projection of the feature beside the text tower's, 0: none", low=0)


class EncoderStage(ImageStage):
    """Parameters `encoder/…`, and with a projection `projection/kernel` [width, projection] and `logit_scale` []."""

    Config: ClassVar = EncoderStageConfig
    config: EncoderStageConfig

    def __init__(self, config: EncoderStageConfig):
        super().__init__(config)
        pooled = config.model.pool == "mean"
        self.model = Model(lambda rngs: vit.Encoder(config.model, self.image_size, pooled=pooled, rngs=rngs))
        self.handoff = self.encoder_handoff(head="")

    def init(self, key):
        params = {"encoder": self.model.init(key)}
        if self.config.projection:
            width = vit.dimensions(self.config.model).width
            params |= {
                "projection": {"kernel": jnp.zeros((width, self.config.projection))},
                "logit_scale": jnp.zeros(()),
            }
        return params

    def loss(self, params, batch, keys):
        raise UserError(
            "config.stage: 'encoder' is weights alone and is not trained; start another stage from it with "
            "--config.init_from.run"
        )

    def parameter_axes(self):
        projection = ((r"projection/kernel", ("fsdp", None)), (r"logit_scale", ()))
        return (*projection, *super().parameter_axes())

    def evaluators(self):
        raise UserError(
            "--workdir: this run is an encoder alone, with nothing to evaluate; train a linear probe on it "
            "(configs/linear) or write its features with embed"
        )

    def train_flops_per_example(self):
        return 3 * vit.forward_flops(self.config.model, self.image_size)
