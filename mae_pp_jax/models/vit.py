"""The Vision Transformer that every stage shares: its sizes, its encoder, and the classifier on top of it.

Dimensions and initialisation follow MAE (He et al. 2021) and, for the large sizes, MAWS (Singh et al. 2023).
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mae_pp_jax.core import functional, hardware, rng
from mae_pp_jax.core.config import key as config_key
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.partition import constrain
from mae_pp_jax.models import adapters as adapters_lib
from mae_pp_jax.models import blocks, masking, positions
from mae_pp_jax.models.blocks import TOKEN_AXES, LayerNorm
from mae_pp_jax.models.patches import PatchEmbed, size_text
from mae_pp_jax.models.transformer import Transformer

# Name → width, depth, heads; the hidden width of the MLP is 4 · width.
SIZES = {
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
    "2B": (2560, 24, 32),
    "6.5B": (4096, 32, 32),
}

# Axes of the parameters of an encoder, and of a linear head on it; see `core.partition`.
PARAMETER_AXES = (
    (r"encoder/patch_embed/kernel", (None, "fsdp")),
    (r"encoder/(cls_token|pos_embed)", (None, "fsdp")),
    (r"encoder/(patch_embed|norm|fc_norm)/(bias|scale)", (None,)),
    (r"head/kernel", ("fsdp", "tensor")),
    (r"head/bias", (None,)),
    *blocks.PARAMETER_AXES,
)

# Standard deviation of the classifier's kernel. `small`: MAE's full finetuning.
HEAD_INITS = {"zeros": 0.0, "small": 2e-5}


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """Shape and numerics of the encoder."""

    size: str = config_key("B/16", f"{', '.join(SIZES)}, and after a slash the side of a patch in pixels")
    width: int = config_key(0, "channels of a token, 0 = as the size says", low=0)
    depth: int = config_key(0, "number of blocks, 0 = as the size says", low=0)
    heads: int = config_key(0, "attention heads, 0 = as the size says", low=0)
    mlp: int = config_key(0, "hidden width of the MLPs, 0 = 4 x width", low=0)
    drop_path: float = config_key(0.0, "stochastic depth rate of the last block, 0 at the first", low=0.0, high=0.99)
    pool: str = config_key(
        "cls",
        "feature of an image: class token after `norm`, or mean of patches then `fc_norm` (no `norm`); unused by mae",
        choices=("cls", "mean"),
    )
    cls_token: bool = config_key(True, "whether a class token goes along with the patches")
    positions: str = config_key(
        "learned",
        "position table: fixed sin-cos, or trained starting from it",
        choices=("sincos", "learned"),
    )
    norm_eps: float = config_key(1e-6, "added to the variance in LayerNorms", low=0.0)
    remat: str = config_key(
        "none",
        "what the backward pass recomputes: nothing, all of a block, or all but its matmuls with weights",
        choices=functional.REMAT,
        restart=True,
    )
    attention: str = config_key(
        "auto",
        "what is fastest on the platform (a kernel on TPU, cuDNN on GPU), or always XLA's operations",
        choices=("auto", "xla"),
        restart=True,
    )
    dtype: str = config_key(
        "auto",
        "compute dtype (parameters are float32); auto = bfloat16 on accelerators, float32 on CPU",
        choices=("auto", "float32", "bfloat16"),
    )


class Dimensions(NamedTuple):
    """What a size name and its overrides come to."""

    patch: int
    width: int
    depth: int
    heads: int
    mlp: int


def dimensions(config: VitConfig) -> Dimensions:
    """Resolves `config.size` and its overrides.

    Raises:
      UserError: unknown size, or a width that does not fit the heads or the position table.
    """
    match = re.fullmatch(r"([^/]+)/([1-9]\d*)", config.size)
    if not match or match[1] not in SIZES:
        name, _, patch = config.size.partition("/")
        near = (difflib.get_close_matches(name.upper(), SIZES, n=1, cutoff=0.3) or ["B"])[0]
        near += f"/{patch if patch.isdigit() and int(patch) else 16}"
        raise UserError(
            f"config.model.size: {config.size!r} is no size; did you mean '{near}'? "
            f"Known: {', '.join(SIZES)}, each followed by / and the side of a patch"
        )
    width, depth, heads = SIZES[match[1]]
    width, depth, heads = config.width or width, config.depth or depth, config.heads or heads
    check_width("config.model", width, heads)
    return Dimensions(int(match[2]), width, depth, heads, config.mlp or 4 * width)


def check_width(where: str, width: int, heads: int, prefix: str = "") -> None:
    """Raises `UserError` unless `width` divides by the heads and by 4, as the sin-cos table needs.

    Args:
      where: the config section to blame.
      width: channels of a token.
      heads: attention heads.
      prefix: what stands before `width` and `heads` in the names of the keys.
    """
    if width % heads or width % 4:
        raise UserError(
            f"{where}.{prefix}width: {width} must be a multiple of 4 and of {prefix}heads = {heads}; "
            f"set {prefix}width or {prefix}heads"
        )


def grid(config: VitConfig, image_size: tuple[int, int], where: str = "config.data.image_size") -> tuple[int, int]:
    """(rows, columns) of patches in images of (height, width) pixels.

    Args:
      config: the encoder.
      image_size: (height, width) in pixels.
      where: the key or argument to blame for a size that does not fit.

    Raises:
      UserError: the images do not divide into patches.
    """
    patch = dimensions(config).patch
    if any(side < patch or side % patch for side in image_size):
        near = tuple(max(1, round(side / patch)) * patch for side in image_size)
        raise UserError(
            f"{where}: {size_text(image_size)} does not divide into patches of {patch} (config.model.size = "
            f"{config.size}); use an image size such as {size_text(near)} or another patch"
        )
    height, width = image_size
    return height // patch, width // patch


def compute_dtype(config) -> jnp.dtype:
    """The dtype of matmuls and activations of an encoder; `auto` asks which platform is compiled for."""
    auto = "float32" if hardware.platform() == "cpu" else "bfloat16"
    return jnp.dtype(auto if config.dtype == "auto" else config.dtype)


class Encoder(Transformer):
    """Images to tokens, and to one feature for each image.

    Parameters: `patch_embed/{kernel, bias}`, `cls_token` [1, width], `pos_embed` [tokens, width] (class token first),
    `blocks/…` (each with a leading `layers` axis), and the last norm: `norm` acts on all tokens; with pooling by mean,
    `fc_norm` takes its place and acts on the mean, as in MAE's finetuning.

    The position table is always a parameter, so that it moves between stages like any other: fixed (gradient stopped)
    or trained, it starts as the sin-cos table.

    Args:
      config: shape and numerics.
      image_size: (height, width) of the images in pixels.
      pooled: whether the encoder ends as `config.pool` says. If not, the last norm is `norm`.
      rngs: keys for initialisation.

    Raises:
      UserError: unknown size, image size not divisible by the patch, pooling by a class token that is switched off.
    """

    def __init__(self, config: VitConfig, image_size: tuple[int, int], *, pooled: bool = True, rngs: nnx.Rngs):
        if pooled and config.pool == "cls" and not config.cls_token:
            raise UserError("config.model.pool: 'cls' needs the class token; set cls_token=true or pool=mean")
        self.config, self.dims, dtype = config, dimensions(config), compute_dtype(config)
        self.grid = grid(config, image_size)
        patch, width, depth, heads, mlp = self.dims
        self.patch_embed = PatchEmbed(patch, width, dtype, rngs=rngs)
        if config.cls_token:
            self.cls_token = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (1, width)))
        self.pos_embed = nnx.Param(jnp.asarray(positions.sincos_2d(width, *self.grid, config.cls_token)))
        self.mean_pool = pooled and config.pool == "mean"
        super().__init__(
            width,
            depth,
            heads,
            mlp,
            dtype,
            eps=config.norm_eps,
            attention=config.attention,
            remat=config.remat,
            drop_path=config.drop_path,
            last_norm=not self.mean_pool,
            rngs=rngs,
        )
        if self.mean_pool:
            self.fc_norm = LayerNorm(width, dtype, config.norm_eps)

    def embed(self, images: jax.Array) -> jax.Array:
        """Images [batch, height, width, 3], normalised floats → patches [batch, patches, width] with positions."""
        return constrain(self.patch_embed(images) + self._positions()[int(self.config.cls_token) :], TOKEN_AXES)

    def __call__(
        self,
        images: jax.Array,
        *,
        select: jax.Array | None = None,
        keys: jax.Array | None = None,
        train: bool = False,
        adapters: Mapping | None = None,
    ) -> jax.Array:
        """Encodes images.

        Args:
          images: [batch, height, width, 3], normalised floats.
          select: [batch, visible, patches] one-hot rows; only the patches that they pick enter the blocks.
          keys: [batch], keys for drop path; needed to train with `drop_path` above 0.
          train: whether drop path acts.
          adapters: of `adapters.ready`; tokens that they add go through the blocks and are left out of the result.

        Returns:
          Tokens [batch, tokens, width] in the compute dtype, class token (if there is one) first.
        """
        x = self.embed(images)
        if select is not None:
            x = masking.gather_visible(select, x)
        if self.config.cls_token:
            cls = self.cls_token[...].astype(self.dtype) + self._positions()[:1]
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], *cls.shape)), x], axis=1)
        if not adapters:
            return self.transform(x, keys, train)
        own, in_blocks = x.shape[1], {name: leaves for name, leaves in adapters.items() if name != "prompt"}
        if "prompt" in adapters:
            x = adapters_lib.with_prompts(x, adapters["prompt"])
        elif "prompts" in adapters:
            x = adapters_lib.with_prompts(x, adapters["prompts"][0])
        return self.transform(x, keys, train, adapters=in_blocks)[:, :own]

    def pool_tokens(self, tokens: jax.Array, pool: str | None = None) -> jax.Array:
        """Tokens [batch, tokens, width] as `__call__` returns them → one feature for each image [batch, width].

        Args:
          tokens: with the class token (if there is one) first.
          pool: "cls" or "mean", for an encoder that ends in `norm`; None: as it is built.
        """
        if self.mean_pool or pool == "mean":
            mean = jnp.mean(tokens[:, int(self.config.cls_token) :], axis=1, dtype=jnp.float32)
            return self.fc_norm(mean) if self.mean_pool else mean
        return tokens[:, 0]

    def features(self, images: jax.Array, pool: str | None = None, adapters: Mapping | None = None) -> jax.Array:
        """Images [batch, height, width, 3] → one feature for each [batch, width], float32; `pool` as `pool_tokens`."""
        return self.pool_tokens(self(images, adapters=adapters), pool).astype(jnp.float32)

    def _positions(self) -> jax.Array:
        table = self.pos_embed[...]
        if self.config.positions == "sincos":
            table = jax.lax.stop_gradient(table)
        return table.astype(self.dtype)


class Classifier(nnx.Module):
    """An encoder, pooling, and a linear head: parameters `encoder/…` and `head/{kernel [width, classes], bias}`.

    Args:
      config: shape and numerics of the encoder.
      image_size: (height, width) of the images in pixels.
      classes: number of classes (or hashtags).
      head_init: how the kernel of the head starts, a name of `HEAD_INITS`; its bias starts at 0.
      dropout: share of the feature's channels that training sets to zero before the head.
      rngs: keys for initialisation.
    """

    def __init__(
        self,
        config: VitConfig,
        image_size: tuple[int, int],
        classes: int,
        *,
        head_init: str,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.encoder, self.dropout = Encoder(config, image_size, rngs=rngs), dropout
        self.head = nnx.Linear(
            self.encoder.dims.width,
            classes,
            # MAE's trunc_normal_ cuts at ±2, which at these deviations is no cut at all.
            kernel_init=nnx.initializers.normal(HEAD_INITS[head_init]),
            dtype=self.encoder.dtype,
            preferred_element_type=jnp.float32,
            rngs=rngs,
        )

    def __call__(self, images: jax.Array, keys: jax.Array | None = None, train: bool = False) -> jax.Array:
        """Images [batch, height, width, 3] → logits [batch, classes], float32; drop path and dropout need keys [batch]."""
        feature = self.encoder.pool_tokens(self.encoder(images, keys=keys, train=train))
        if train and self.dropout:
            feature = blocks.dropout(feature, rng.stream(keys, "head_dropout"), self.dropout)
        return self.head(feature).astype(jnp.float32)


def block_flops(width: int, mlp: int, tokens: int) -> float:
    """FLOPs of the matmuls of one block for one image, 2 per multiply-add: qkv, scores, mixing, proj and the MLP."""
    return 2.0 * tokens * width * (4 * width + 2 * tokens + 2 * mlp)


def forward_flops(config: VitConfig, image_size: tuple[int, int], tokens: int | None = None, classes: int = 0) -> float:
    """FLOPs of one image's forward pass: the matmuls of patch embedding, blocks and head, 2 per multiply-add.

    Args:
      config: the encoder.
      image_size: (height, width) of the images in pixels.
      tokens: tokens that enter the blocks; all patches and the class token when not given.
      classes: columns of the head.
    """
    patch, width, depth, _, mlp = dimensions(config)
    patches = math.prod(grid(config, image_size))
    tokens = patches + int(config.cls_token) if tokens is None else tokens
    return 2.0 * patches * patch**2 * 3 * width + depth * block_flops(width, mlp, tokens) + 2.0 * width * classes
