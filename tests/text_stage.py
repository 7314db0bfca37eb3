"""A stage of another kind than those of the package: the next byte of a text. It uses nothing but the core.

It is what a new stage takes at least, and what tests of the core train.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core import partition, rng
from mae_pp_jax.core.config import key
from mae_pp_jax.core.handoff import Handoff
from mae_pp_jax.core.stage import Stage, StageConfig

TEXT = np.frombuffer(b"the quick brown fox jumps over the lazy dog; " * 40, np.uint8)


@dataclasses.dataclass(frozen=True)
class TextConfig(StageConfig):
    width: int = key(16, "channels", low=1)
    context: int = key(8, "bytes of an example, with the next one of each as its target", low=1)


class TextStage(Stage):
    Config, example = TextConfig, "text"

    def __init__(self, config: TextConfig):
        self.config, self.records = config, len(TEXT) - config.context
        self.dataset = dict(name="fox", records=self.records)
        self.handoff = Handoff(stages=("text",), move=((r"(.*)", r"\1"),))

    def init(self, key):
        width, keys = self.config.width, jax.random.split(key, 2)
        mixing = {"kernel": jax.random.normal(keys[0], (2, width, width)) / width, "bias": jnp.zeros((2, width))}
        table = jax.random.normal(keys[1], (256, width))
        return {"table": table, "mixing": mixing, "readout": {"kernel": jnp.zeros((width, 256))}}

    def parameter_axes(self):
        mixing = ((r"mixing/kernel", ("layers", "fsdp", "tensor")), (r"mixing/bias", ("layers", "tensor")))
        return (*mixing, (r"table", (None, "fsdp")), (r"readout/kernel", ("fsdp", "tensor")))

    def bits(self, params, texts, scale=1.0):
        """Mean bits per byte [batch] of texts [batch, context + 1]."""
        x = params["table"][texts[:, :-1]] * scale
        x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w["kernel"] + w["bias"]), None), x, params["mixing"])
        logits = x @ params["readout"]["kernel"]
        own = jnp.sum(jax.nn.one_hot(texts[:, 1:], 256) * jax.nn.log_softmax(logits), -1)
        return -jnp.mean(own, -1) / jnp.log(2.0)

    def loss(self, params, batch, keys):
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.9, (1, 1)))(rng.stream(keys, "dropped channels"))
        bits = self.bits(params, batch["bytes"], kept / 0.9)
        total = (jnp.sum(bits), jnp.sum(jnp.ones_like(bits)))
        return total, {"bits": total}

    def rows(self, starts):
        return {"bytes": TEXT[np.asarray(starts)[:, None] + np.arange(self.config.context + 1)].astype(np.int32)}

    def train_batches(self, start_step):
        index, parts = self.reader
        own = slice(index * self.config.global_batch // parts, (index + 1) * self.config.global_batch // parts)
        while True:
            draw = np.random.default_rng((self.config.seed, start_step))
            yield self.rows(draw.integers(self.records, size=self.config.global_batch)[own])
            start_step += 1

    def batch_spec(self):
        return {"bytes": jax.ShapeDtypeStruct((self.config.global_batch, self.config.context + 1), jnp.int32)}

    def evaluators(self):
        return [HeldOut(self)]

    def describe_batch(self, step):
        return f"texts of step {step}"

    def train_flops_per_example(self):
        return 6.0 * self.config.context * self.config.width * (2 * self.config.width + 256)


class HeldOut:
    """Bits per byte of texts at equal distances."""

    name = "held_out/bits"

    def __init__(self, stage: TextStage):
        self._stage, self._measure = stage, jax.jit(stage.bits)

    def run(self, params, mesh):
        starts = np.linspace(0, self._stage.records - 1, 64).astype(int)
        with jax.set_mesh(mesh):
            texts = partition.to_global(self._stage.rows(starts), mesh)["bytes"]
            return {self.name: float(jnp.mean(self._measure(params, texts)))}
