"""Stage `text_encoder`: a text encoder alone, imported, random or from another run; `lit` starts from it.

It is not trained: `train` writes its initial weights as a finished run, against which trained ones are compared.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from mae_pp_jax.core.config import key, section
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import Model
from mae_pp_jax.core.handoff import Handoff
from mae_pp_jax.core.optim import FROZEN
from mae_pp_jax.core.stage import Stage, StageConfig
from mae_pp_jax.models import text as text_lib


@dataclasses.dataclass(frozen=True)
class TextEncoderStageConfig(StageConfig):
    """Keys of the stage."""

    text: text_lib.TextConfig = section(text_lib.TextConfig)
    projection: int = key(0, "width of a projection of the feature beside the image tower's, 0: none", low=0)

    @classmethod
    def inherit(cls, stated, part, source):
        if source.get("stage") != "text_encoder":  # refused by the handoff, by name
            return dict(stated)
        own = {"text": {**source["text"], **stated.get("text", {})}}
        return {"projection": source["projection"], **stated, **own}

    def unused(self):
        nothing = "stage 'text_encoder' is not trained and reads no data"
        return super().unused() | dict.fromkeys(("train_for", "global_batch", "optim.lr"), nothing)


class TextEncoderStage(Stage):
    """Parameters `text/…`, and with a projection `projection/kernel` [width, projection]."""

    Config: ClassVar = TextEncoderStageConfig
    example: ClassVar = "text"
    trained: ClassVar = False
    config: TextEncoderStageConfig
    records: ClassVar = 0
    dataset: ClassVar = {}

    def __init__(self, config: TextEncoderStageConfig):
        self.config = config
        self.model = Model(lambda rngs: text_lib.TextEncoder(config.text, rngs=rngs))
        self.handoff = Handoff(stages=("text_encoder",), move=((r"((text|projection)/.*)", r"\1"),))

    def init(self, key):
        params = {"text": self.model.init(key)}
        if self.config.projection:
            width = text_lib.dimensions(self.config.text).width
            params["projection"] = {"kernel": jnp.zeros((width, self.config.projection))}
        return params

    def batch_spec(self):
        raise UserError(
            "config.stage: 'text_encoder' is not trained, it has no step to plan or to time; give another stage"
        )

    def parameter_axes(self):
        return ((r"projection/kernel", ("fsdp", None)), *text_lib.PARAMETER_AXES)

    def lr_rules(self):
        return ((r".*", FROZEN),)

    def evaluators(self):
        raise UserError("--workdir: this run is a text encoder alone; train lit with it and evaluate that")

    def train_flops_per_example(self):
        return 3 * text_lib.forward_flops(self.config.text, text_lib.longest(self.config.text))
