"""Stage `encoder`: an encoder without head or decoder, imported, random or from another run; other stages start from it.

It is not trained: `train` writes its initial weights as a finished run, against which trained ones are compared.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from mae_pp_jax.core.config import key
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import Model
from mae_pp_jax.core.optim import FROZEN
from mae_pp_jax.models import vit
from mae_pp_jax.stages.shared.image_config import ImageStageConfig
from mae_pp_jax.stages.shared.images import ImageStage


@dataclasses.dataclass(frozen=True)
class EncoderStageConfig(ImageStageConfig):
    """Keys of the stage; `model.pool=mean` says that the encoder ends in `fc_norm`, `cls` in `norm`."""

    projection: int = key(0, "width of a projection of the feature beside the text tower's, 0: none", low=0)

    def unused(self):
        nothing = "stage 'encoder' is not trained and reads no data"
        return super().unused() | dict.fromkeys(("train_for", "global_batch", "optim.lr", "data.name"), nothing)


class EncoderStage(ImageStage):
    """Parameters `encoder/…`, and with a projection `projection/kernel` [width, projection] and `logit_scale` []."""

    Config: ClassVar = EncoderStageConfig
    trained: ClassVar = False
    config: EncoderStageConfig
    records: ClassVar = 0
    dataset: ClassVar = {}

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
        raise UserError("config.stage: 'encoder' is not trained, it has no step to plan or to time; give another stage")

    def parameter_axes(self):
        projection = ((r"projection/kernel", ("fsdp", None)), (r"logit_scale", ()))
        return (*projection, *super().parameter_axes())

    def lr_rules(self):
        return ((r".*", FROZEN),)

    def identity(self):
        return {}

    def evaluators(self):
        raise UserError(
            "--workdir: this run is an encoder alone, without a head to evaluate; judge its features with "
            "--suite=image --data=NAME, or write them with embed"
        )

    def train_flops_per_example(self):
        return 3 * vit.forward_flops(self.config.model, self.image_size)
