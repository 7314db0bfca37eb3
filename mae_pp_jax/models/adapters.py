"""Adapters: few trained parameters in and beside the blocks of an encoder that is itself frozen.

VPT (Jia et al. 2022), AdaptFormer (Chen et al. 2022) and LoRA (Hu et al. 2021), as in KMnP/vpt, ShoufaChen/AdaptFormer
and microsoft/LoRA. Their parameters are a tree beside the encoder's, whose leaves have a leading `layers` axis but for
shallow prompts: `init` draws it, `ready` makes of it what `Encoder.__call__` takes as `adapters`.

AdaptFormer and LoRA leave the encoder as it is until they are trained. VPT does not: its tokens are attended to.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mae_pp_jax.core import rng
from mae_pp_jax.core.config import key as config_key
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.models.matmul import matmul

KINDS = ("none", "vpt_shallow", "vpt_deep", "adaptformer", "lora")
TARGETS = ("q", "k", "v", "proj", "fc1", "fc2")  # products of a block that LoRA adds to
VPT, ADAPTFORMER, LORA = ("vpt_shallow", "vpt_deep"), ("adaptformer",), ("lora",)
# Which kinds read a key.
USED_BY = {
    "tokens": VPT,
    "bottleneck": ADAPTFORMER,
    "scale": ADAPTFORMER,
    "dropout": VPT + ADAPTFORMER,
    "rank": LORA,
    "alpha": LORA,
    "targets": LORA,
}
# Axes of the parameters of one model's adapters; see `core.partition`. They are small and stay whole.
PARAMETER_AXES = (
    (r"prompt", (None, None)),
    (r"prompts", ("layers", None, None)),
    (r"parallel/.*/kernel", ("layers", None, None)),
    (r"parallel/.*/bias", ("layers", None)),
    (r"lora/.*", ("layers", None, None)),
)


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """What is trained in the blocks of a frozen encoder; a key that the kind does not use is refused."""

    kind: str = config_key("none", "nothing, VPT (shallow or deep), AdaptFormer or LoRA", choices=KINDS)
    tokens: int = config_key(5, "vpt: learned tokens", low=1)
    bottleneck: int = config_key(64, "adaptformer: hidden channels", low=1)
    scale: float = config_key(0.1, "adaptformer: factor on what it adds", low=0.0)
    dropout: float | None = config_key(
        None,
        "rate in training: of vpt's tokens (none: 0) or adaptformer's hidden channels (none: 0.1)",
        low=0.0,
        high=0.9,
    )
    rank: int = config_key(8, "lora: rank of what is added to a kernel", low=1)
    alpha: float = config_key(8.0, "lora: what it adds is multiplied by alpha / rank", low=0.0)
    targets: tuple[str, ...] = config_key(("q", "v"), f"lora: kernels that it adds to, of {', '.join(TARGETS)}")

    def __post_init__(self):
        for target in self.targets:
            if target not in TARGETS:
                raise UserError(f"adapter.targets: '{target}' is not one of {', '.join(TARGETS)}")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise UserError(f"adapter.targets: name one or more of {', '.join(TARGETS)}, each once; got {self.targets}")

    def unused(self) -> dict[str, str]:
        """Keys that the kind does not read → why."""
        return {
            name: f"only adapter.kind={' or '.join(kinds)} uses it"
            for name, kinds in USED_BY.items()
            if self.kind not in kinds
        }

    @property
    def rate(self) -> float:
        """Of dropout."""
        return (0.1 if self.kind in ADAPTFORMER else 0.0) if self.dropout is None else self.dropout


def init(config: AdapterConfig, key: jax.Array, *, depth: int, width: int, mlp: int, patch: int) -> dict:
    """Fresh parameters of one model.

    Args:
      config: which adapters.
      key: random key.
      depth, width, mlp, patch: of the encoder, as `vit.Dimensions` has them.

    Returns:
      vpt_shallow: `prompt` [tokens, width]; vpt_deep: `prompts` [layers, tokens, width]; adaptformer:
      `parallel/{down, up}/{kernel, bias}`; lora: `lora/TARGET/a` [layers, inputs, rank], `b` [layers, rank, outputs].
    """
    if config.kind in VPT:
        bound = math.sqrt(6 / (3 * patch**2 + width))
        shape = (config.tokens, width) if config.kind == "vpt_shallow" else (depth, config.tokens, width)
        return {"prompt" if len(shape) == 2 else "prompts": jax.random.uniform(key, shape, minval=-bound, maxval=bound)}
    if config.kind in ADAPTFORMER:
        hidden = config.bottleneck
        down = {"kernel": _kaiming(key, depth, width, hidden), "bias": jnp.zeros((depth, hidden))}
        return {
            "parallel": {
                "down": down,
                "up": {"kernel": jnp.zeros((depth, hidden, width)), "bias": jnp.zeros((depth, width))},
            }
        }
    if config.kind in LORA:
        sizes = dict.fromkeys(TARGETS, (width, width)) | {"fc1": (width, mlp), "fc2": (mlp, width)}
        return {
            "lora": {
                target: {
                    # A key for each by name, so that one more target changes no other's draw.
                    "a": _kaiming(jax.random.fold_in(key, TARGETS.index(target)), depth, sizes[target][0], config.rank),
                    "b": jnp.zeros((depth, config.rank, sizes[target][1])),
                }
                for target in config.targets
            }
        }
    return {}


def _kaiming(key: jax.Array, depth: int, inputs: int, outputs: int) -> jax.Array:
    """Kernels [layers, inputs, outputs] as PyTorch's kaiming_uniform with a = √5 draws them: uniform in ±1/√inputs."""
    bound = inputs**-0.5
    return jax.random.uniform(key, (depth, inputs, outputs), minval=-bound, maxval=bound)


def ready(config: AdapterConfig, params: Mapping, keys: jax.Array | None = None) -> dict:
    """Parameters as `Encoder.__call__` takes them: scaled, and with what dropout needs.

    Args:
      config: which adapters.
      params: of one model, as `init` gives them.
      keys: [batch], keys for dropout; None: without, as in evaluation.
    """
    if "lora" in params:
        factor = config.alpha / config.rank
        return {"lora": {target: {"a": p["a"], "b": factor * p["b"]} for target, p in params["lora"].items()}}
    drops = keys is not None and config.rate > 0
    out = dict(params)
    if drops:
        keys = rng.stream(keys, "adapter_dropout")
    if "parallel" in params:
        up = jax.tree.map(lambda leaf: config.scale * leaf, params["parallel"]["up"])
        out["parallel"] = {"down": params["parallel"]["down"], "up": up}
        if drops:
            depth = up["bias"].shape[0]
            out["parallel"]["keys"] = jax.vmap(lambda i: jax.vmap(lambda k: jax.random.fold_in(k, i))(keys))(
                jnp.arange(depth)
            )
            out["parallel"]["keep"] = jnp.full(depth, 1 - config.rate)
    elif drops:
        ((name, prompts),) = params.items()
        keep = 1 - config.rate
        # [batch, (layers,) tokens, width] → layers first
        kept = jax.vmap(lambda k: jax.random.bernoulli(k, keep, prompts.shape))(keys)
        out[name] = jnp.moveaxis(kept * (prompts / keep), 0, -3)
    return out


def extra_tokens(config: AdapterConfig) -> int:
    """Tokens that go along with an image's own."""
    return config.tokens if config.kind in VPT else 0


def forward_flops(config: AdapterConfig, *, depth: int, width: int, mlp: int, tokens: int) -> float:
    """FLOPs of the adapters' own products for one image, 2 per multiply-add; those of prompts are the blocks'."""
    if config.kind in ADAPTFORMER:
        return 4.0 * depth * tokens * width * config.bottleneck
    if config.kind in LORA:
        channels = sum(width + mlp if target in ("fc1", "fc2") else 2 * width for target in config.targets)
        return 2.0 * depth * tokens * config.rank * channels
    return 0.0


# What the encoder and its blocks do with one layer's part of `ready`.


def with_prompts(x: jax.Array, prompts: jax.Array) -> jax.Array:
    """Tokens [batch, tokens, width] and prompts [(batch,) n, width] after them.

    They have no positions, so that attention does not know where they stand; the papers' code has them after the class
    token.
    """
    prompts = prompts.astype(x.dtype)
    return jnp.concatenate([x, jnp.broadcast_to(prompts, (x.shape[0], *prompts.shape[-2:]))], axis=1)


def replace_prompts(x: jax.Array, prompts: jax.Array) -> jax.Array:
    """Tokens that end in prompts [batch, tokens + n, width] with others in their place."""
    return with_prompts(x[:, : x.shape[1] - prompts.shape[-2]], prompts)


def parallel(p: Mapping, x: jax.Array) -> jax.Array:
    """What AdaptFormer adds to the MLP's branch; x [batch, tokens, width] is the residual stream before its norm."""
    down, up = (jax.tree.map(lambda leaf: leaf.astype(x.dtype), p[name]) for name in ("down", "up"))
    hidden = jax.nn.relu(matmul(x, down["kernel"]) + down["bias"])
    if "keys" in p:
        kept = jax.vmap(lambda k: jax.random.bernoulli(k, p["keep"], hidden.shape[1:]))(p["keys"])
        hidden = jnp.where(kept, hidden / p["keep"], 0).astype(x.dtype)
    return matmul(hidden, up["kernel"]) + up["bias"]


def low_rank(p: Mapping | None, target: str, x: jax.Array) -> jax.Array | float:
    """What LoRA adds to the product of x [batch, tokens, inputs] with a kernel, [batch, tokens, outputs]; or 0."""
    if p is None or target not in p:
        return 0.0
    return matmul(matmul(x, p[target]["a"].astype(x.dtype)), p[target]["b"].astype(x.dtype))
