"""The masked autoencoder (He et al. 2021): the encoder sees a few patches, a small decoder predicts the rest."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from mae_pp_jax.core.config import key as config_key
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.partition import constrain
from mae_pp_jax.models import blocks, masking, positions
from mae_pp_jax.models.blocks import TOKEN_AXES, xavier_uniform
from mae_pp_jax.models.patches import patchify, unpatchify
from mae_pp_jax.models.transformer import Transformer
from mae_pp_jax.models.vit import Encoder, VitConfig, block_flops, check_width, dimensions, forward_flops, grid

# Axes of the parameters of a decoder; see `core.partition`.
PARAMETER_AXES = (
    (r"decoder/(embed|pred)/kernel", ("fsdp", None)),
    (r"decoder/(mask_token|pos_embed)", (None, "fsdp")),
    (r"decoder/(embed|pred|norm)/(bias|scale)", (None,)),
    *blocks.PARAMETER_AXES,
)


@dataclasses.dataclass(frozen=True)
class MaeConfig:
    """Masking, decoder and target."""

    decoder_width: int = config_key(512, "channels of a token in the decoder", low=4)
    decoder_depth: int = config_key(8, "blocks of the decoder", low=1)
    decoder_heads: int = config_key(16, "attention heads of the decoder", low=1)
    decoder_mlp: int = config_key(0, "hidden width of the decoder's MLPs, 0 = 4 x decoder_width", low=0)
    mask_ratio: float = config_key(0.75, "share of the patches of each image that are masked", low=0.0, high=1.0)
    normalize_target: bool = config_key(True, "whether each target patch is normalised by its own mean and deviation")


def visible_patches(config: MaeConfig, patches: int) -> int:
    """How many of the patches of an image stay visible.

    Raises:
      UserError: none or all of them.
    """
    visible = int(patches * (1 - config.mask_ratio))
    if not 0 < visible < patches:
        raise UserError(
            f"config.mae.mask_ratio: {config.mask_ratio} of {patches} patches leaves {visible} visible; at least one "
            f"must be visible and one masked: use a ratio such as 0.75 or smaller patches"
        )
    return visible


def decoder_mlp(config: MaeConfig) -> int:
    """Hidden width of the decoder's MLPs."""
    return config.decoder_mlp or 4 * config.decoder_width


class Decoder(Transformer):
    """Visible tokens to pixels of all patches.

    Parameters: `embed`, `mask_token` [1, width], `pos_embed` [tokens, width] (fixed sin-cos), `blocks/…`, `norm` and
    `pred`.

    Args:
      config: width, depth, heads and hidden width of the MLPs.
      encoder: the encoder whose tokens it takes.
      rngs: keys for initialisation.
    """

    def __init__(self, config: MaeConfig, encoder: Encoder, *, rngs: nnx.Rngs):
        width, heads, dtype = config.decoder_width, config.decoder_heads, encoder.dtype
        check_width("config.mae", width, heads, prefix="decoder_")
        whole = encoder.config
        self.cls_tokens = int(whole.cls_token)
        self.embed = nnx.Linear(encoder.dims.width, width, kernel_init=xavier_uniform, dtype=dtype, rngs=rngs)
        self.mask_token = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (1, width)))
        self.pos_embed = nnx.Param(jnp.asarray(positions.sincos_2d(width, *encoder.grid, whole.cls_token)))
        super().__init__(
            width,
            config.decoder_depth,
            heads,
            decoder_mlp(config),
            dtype,
            eps=whole.norm_eps,
            attention=whole.attention,
            remat=whole.remat,
            rngs=rngs,
        )
        self.pred = nnx.Linear(width, encoder.dims.patch**2 * 3, kernel_init=xavier_uniform, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array, select: jax.Array, mask: jax.Array) -> jax.Array:
        """Paints all patches.

        Args:
          tokens: [batch, cls + visible, encoder width].
          select: [batch, visible, patches], from `masking.select_visible`.
          mask: [batch, patches], from `masking.select_visible`.

        Returns:
          [batch, patches, patch · patch · 3], float32.
        """
        x = self.embed(tokens)
        cls, visible = x[:, : self.cls_tokens], x[:, self.cls_tokens :]
        patches = masking.restore_patches(select, visible, mask, self.mask_token[...])
        x = jnp.concatenate([cls, patches], axis=1) + jax.lax.stop_gradient(self.pos_embed[...]).astype(self.dtype)
        return self.pred(self.transform(constrain(x, TOKEN_AXES)))[:, self.cls_tokens :].astype(jnp.float32)


class Mae(nnx.Module):
    """Encoder, decoder and loss: parameters `encoder/…` and `decoder/…`.

    Args:
      encoder_config: the encoder; it ends in `norm` whatever its `pool` says.
      config: masking, decoder and target.
      image_size: (height, width) of the images in pixels.
      rngs: keys for initialisation.

    Raises:
      UserError: sizes that do not fit one another.
    """

    def __init__(self, encoder_config: VitConfig, config: MaeConfig, image_size: tuple[int, int], *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(encoder_config, image_size, pooled=False, rngs=rngs)
        self.patches = math.prod(self.encoder.grid)
        self.visible = visible_patches(config, self.patches)
        self.decoder = Decoder(config, self.encoder, rngs=rngs)

    def __call__(
        self,
        images: jax.Array,
        keys: jax.Array | None = None,
        *,
        noise: jax.Array | None = None,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        """Masks, encodes, decodes and compares.

        Args:
          images: [batch, height, width, 3], normalised floats.
          keys: [batch], one per image, for its mask and its drop path.
          noise: [batch, patches]; when given, the patches of smallest noise stay visible and `keys` draw no mask.
          train: whether drop path acts.

        Returns:
          loss: [batch] float32, the mean squared error over the pixels of an image's masked patches.
          prediction: [batch, patches, patch · patch · 3] float32, in units of the target.
          mask: [batch, patches] float32, 1 for masked patches.
        """
        if keys is None and noise is None:
            raise ValueError("the mask needs keys or noise")
        if noise is None:
            noise = masking.draw(keys, self.patches)
        select, mask = masking.select_visible(noise, self.visible)
        tokens = self.encoder(images, select=select, keys=keys, train=train)
        prediction = self.decoder(tokens, select, mask)
        target, _, _ = self._target(images)
        error = jnp.mean(jnp.square(prediction - target), axis=-1)
        loss = jnp.sum(error * mask, axis=-1) / (self.patches - self.visible)
        return dict(loss=loss, prediction=prediction, mask=mask)

    def reconstruct(self, images: jax.Array, keys: jax.Array) -> dict[str, jax.Array]:
        """Pictures of what the model sees and predicts.

        Args:
          images: [batch, height, width, 3], normalised floats.
          keys: [batch], keys for the masks.

        Returns:
          masked: [batch, height, width, 3], the images with 0 (the data set's mean colour) in the masked patches.
          reconstruction: [batch, height, width, 3], the images with the prediction in the masked patches. Where the
            target is normalised, the patch's own mean and deviation bring the prediction back to pixels.
        """
        out = self(images, keys)
        _, mean, deviation = self._target(images)
        original, mask = patchify(images, self.encoder.dims.patch), out["mask"][:, :, None]
        painted = out["prediction"] * deviation + mean

        def picture(patches):
            return unpatchify(patches, self.encoder.dims.patch, self.encoder.grid)

        return dict(
            masked=picture(original * (1 - mask)),
            reconstruction=picture(original * (1 - mask) + painted * mask),
        )

    def _target(self, images: jax.Array) -> tuple[jax.Array, jax.Array | float, jax.Array | float]:
        """The pixels to predict [batch, patches, pixels] in float32, and the mean and deviation taken off them."""
        pixels = patchify(images.astype(jnp.float32), self.encoder.dims.patch)
        if not self.config.normalize_target:
            return pixels, 0.0, 1.0
        mean = jnp.mean(pixels, axis=-1, keepdims=True)
        # MAE's variance is PyTorch's: unbiased, and eps stands inside the root.
        deviation = jnp.sqrt(jnp.var(pixels, axis=-1, keepdims=True, ddof=1) + 1e-6)
        return (pixels - mean) / deviation, mean, deviation


def mae_forward_flops(encoder_config: VitConfig, config: MaeConfig, image_size: tuple[int, int]) -> float:
    """FLOPs of one image's forward pass, counted as `vit.forward_flops` does: encoder on visible patches, decoder."""
    patch, encoder_width, *_ = dimensions(encoder_config)
    patches, cls = math.prod(grid(encoder_config, image_size)), int(encoder_config.cls_token)
    visible, width = visible_patches(config, patches), config.decoder_width
    encoder = forward_flops(encoder_config, image_size, tokens=cls + visible)
    blocks = config.decoder_depth * block_flops(width, decoder_mlp(config), cls + patches)
    return encoder + blocks + 2.0 * width * ((cls + visible) * encoder_width + (cls + patches) * patch**2 * 3)
