"""Text encoders of the RoBERTa and BERT families: XLM-R, with which MAWS-CLIP reads captions, and small sentence encoders.

Token embedding, learned positions, a norm, and blocks that normalise after each branch (post-LN), as in transformers'
XLMRobertaModel and BertModel and torchtext's RobertaEncoder. No pooler and no token types: where these are constant,
their row is part of the positions.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mae_pp_jax.core import functional, rng
from mae_pp_jax.core.config import key as config_key
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.partition import constrain, divides
from mae_pp_jax.models import blocks, vit
from mae_pp_jax.models.blocks import TOKEN_AXES, LayerNorm, PostNormBlock
from mae_pp_jax.models.transformer import Transformer


class Dimensions(NamedTuple):
    """What a size name and its overrides come to.

    `vocabulary` and `positions` are rows of tables; `pad` is the token that fills texts up.
    """

    vocabulary: int
    positions: int
    width: int
    depth: int
    heads: int
    mlp: int
    family: str
    pad: int
    norm_eps: float
    pool: str


SIZES = {
    "xlmr_base": Dimensions(250_002, 514, 768, 12, 12, 3072, "roberta", 1, 1e-5, "first"),
    "xlmr_large": Dimensions(250_002, 514, 1024, 24, 16, 4096, "roberta", 1, 1e-5, "first"),
    "minilm_l6": Dimensions(30_522, 512, 384, 6, 12, 1536, "bert", 0, 1e-12, "mean"),
}
FAMILIES = ("roberta", "bert")
POOLS = ("first", "mean")

# Axes of the parameters of a text encoder named `text`; see `core.partition`. The columns of the vocabulary's table are
# split, as its rows are seldom a multiple of anything: XLM-R's 250,002 are one of 2, 3, 6 and of no other number up to 16.
PARAMETER_AXES = (
    (r"text/token_embed", ("tensor", "fsdp")),
    (r"text/pos_embed", (None, "fsdp")),
    (r"text/embed_norm/(bias|scale)", (None,)),
    *blocks.PARAMETER_AXES,
)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Shape and numerics of the text encoder."""

    size: str = config_key("xlmr_base", "a preset; the keys below replace parts of it", choices=tuple(SIZES))
    vocabulary: int = config_key(0, "rows of the table of tokens, 0 = as the size says", low=0)
    positions: int = config_key(0, "rows of the table of positions, 0 = as the size says", low=0)
    width: int = config_key(0, "channels of a token, 0 = as the size says", low=0)
    depth: int = config_key(0, "number of blocks, 0 = as the size says", low=0)
    heads: int = config_key(0, "attention heads, 0 = as the size says", low=0)
    mlp: int = config_key(0, "hidden width of the MLPs, 0 = as the size says", low=0)
    family: str = config_key(
        "auto",
        "roberta: the first token has position pad + 1 and padding is not counted; bert: positions 0, 1, 2, …; "
        "auto = as the size says",
        choices=("auto", *FAMILIES),
    )
    pad: int = config_key(-1, "number of the token that fills texts up, -1 = as the size says", low=-1)
    norm_eps: float = config_key(0.0, "added to the variance in LayerNorms, 0 = as the size says", low=0.0)
    pool: str = config_key(
        "auto",
        "feature of a text: its first token, or the mean of its tokens; auto = as the size says",
        choices=("auto", *POOLS),
    )
    dropout: float = config_key(
        0.0, "share of the values that training sets to zero after embedding, attention and MLP", low=0.0, high=0.99
    )
    remat: str = config_key(
        "none",
        "what the backward pass recomputes: nothing, all of a block, or all but its matmuls with weights",
        choices=functional.REMAT,
        restart=True,
    )
    attention: str = config_key(
        "auto", "what is fastest on the platform, or always XLA's operations", choices=("auto", "xla"), restart=True
    )
    dtype: str = config_key(
        "auto",
        "compute dtype (parameters are float32); auto = bfloat16 on accelerators, float32 on CPU",
        choices=("auto", "float32", "bfloat16"),
    )


def dimensions(config: TextConfig) -> Dimensions:
    """Resolves `config.size` and its overrides.

    Raises:
      UserError: a width that the heads do not divide, a padding token outside the vocabulary, no position for a token.
    """
    dims = SIZES[config.size]
    numbers = {name: getattr(config, name) or getattr(dims, name) for name in Dimensions._fields[:6]}
    words = {name: getattr(config, name) for name in ("family", "pool") if getattr(config, name) != "auto"}
    dims = dims._replace(**numbers, **words, norm_eps=config.norm_eps or dims.norm_eps)
    dims = dims._replace(pad=dims.pad if config.pad < 0 else config.pad)
    if dims.width % dims.heads:
        raise UserError(f"config.text.width: {dims.width} must be a multiple of heads = {dims.heads}")
    if dims.pad >= dims.vocabulary:
        raise UserError(
            f"config.text.pad: {dims.pad} is none of {dims.vocabulary} tokens (vocabulary); use a smaller one"
        )
    if _first_position(dims) >= dims.positions:
        raise UserError(
            f"config.text.positions: {dims.positions} leaves no position for a token, as the first has "
            f"{_first_position(dims)}; use at least {_first_position(dims) + 1}"
        )
    return dims


def _first_position(dims: Dimensions) -> int:
    return dims.pad + 1 if dims.family == "roberta" else 0


def longest(config: TextConfig) -> int:
    """Tokens that a text may have, those at its begin and end included: 512 of XLM-R's 514 positions."""
    dims = dimensions(config)
    return dims.positions - _first_position(dims)


class TextEncoder(Transformer):
    """Texts to tokens, and to one feature for each text.

    Parameters: `token_embed` [vocabulary, width], `pos_embed` [positions, width], `embed_norm`, and `blocks/…`, each with
    a leading `layers` axis: `attn`, then `norm1` after its sum, `mlp`, then `norm2`.

    Training drops values out where transformers and torchtext do, except within the weights of attention, which no fast
    attention gives access to.

    Args:
      config: shape and numerics.
      rngs: keys for initialisation.

    Raises:
      UserError: dimensions that do not fit one another.
    """

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        self.config, self.dims, dtype = config, dimensions(config), vit.compute_dtype(config)
        dims = self.dims
        draw = nnx.initializers.normal(0.02)
        self.token_embed = nnx.Param(draw(rngs.params(), (dims.vocabulary, dims.width)))
        self.pos_embed = nnx.Param(draw(rngs.params(), (dims.positions, dims.width)))
        self.embed_norm = LayerNorm(dims.width, dtype, dims.norm_eps)
        super().__init__(
            dims.width,
            dims.depth,
            dims.heads,
            dims.mlp,
            dtype,
            eps=dims.norm_eps,
            attention=config.attention,
            remat=config.remat,
            last_norm=False,
            block=functools.partial(PostNormBlock, dropout=config.dropout),
            rngs=rngs,
        )

    def __call__(
        self, ids: jax.Array, mask: jax.Array | None = None, *, keys: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Encodes texts.

        Args:
          ids: [batch, length] int32, tokens; of at most `longest` a text.
          mask: [batch, length] bool, True at tokens of the text; None: where `ids` is not the padding token.
          keys: [batch], keys for dropout; needed to train with `dropout` above 0.
          train: whether dropout acts.

        Returns:
          Tokens [batch, length, width] in the compute dtype; those of padding mean nothing.

        Raises:
          UserError: there are fewer positions than tokens.
        """
        mask = self.mask(ids) if mask is None else mask
        x = lookup(self.token_embed[...], ids, self.dtype) + self._positions(mask)
        x, per_layer = self.embed_norm(x), ()
        if train and self.config.dropout:
            if keys is None:
                raise ValueError("training with dropout needs a key for each example")
            x = blocks.dropout(x, rng.stream(keys, "embedding_dropout"), self.config.dropout)
            streams = rng.stream(keys, "block_dropout")
            per_layer = (jax.vmap(lambda key: jax.random.split(key, self.depth), out_axes=1)(streams),)
        return self.run_blocks(constrain(x, TOKEN_AXES), *per_layer, key_mask=mask)

    def mask(self, ids: jax.Array) -> jax.Array:
        """[batch, length] bool: which tokens are no padding."""
        return ids != self.dims.pad

    def pool_tokens(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens [batch, length, width] as `__call__` returns them → one feature for each text [batch, width], float32.

        A text of no tokens at all has the mean 0.
        """
        if self.dims.pool == "first":
            return tokens[:, 0].astype(jnp.float32)
        total = jnp.sum(tokens, axis=1, where=mask[:, :, None], dtype=jnp.float32)
        return total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)

    def features(
        self, ids: jax.Array, mask: jax.Array | None = None, *, keys: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Texts [batch, length] → one feature for each [batch, width], float32; arguments as `__call__`."""
        mask = self.mask(ids) if mask is None else mask
        return self.pool_tokens(self(ids, mask, keys=keys, train=train), mask)

    def _positions(self, mask: jax.Array) -> jax.Array:
        """The rows of positions of tokens: [batch, length, width], or [length, width] if all texts have the same."""
        length, most = mask.shape[1], longest(self.config)
        if length > most:
            raise UserError(f"config.text.positions: texts of {length} tokens, but there are positions for {most} only")
        if self.dims.family == "bert":
            return self.pos_embed[...][:length].astype(self.dtype)
        counted = jnp.cumsum(mask, axis=1, dtype=jnp.int32) * mask
        return lookup(self.pos_embed[...], counted + self.dims.pad, self.dtype)


def lookup(table: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of a table that may be split over devices; NaN for numbers that the table has not.

    The numbers go to the devices that hold columns of the table, and what they find there comes back: tokens of a batch,
    where gathering the table would move all of a vocabulary.

    Args:
      table: [rows, width].
      ids: [batch, length] int.
      dtype: of the result.

    Returns:
      [batch, length, width].
    """
    rows = jnp.take(table, constrain(ids, ("data", None)), axis=0, mode="fill").astype(dtype)
    if divides(table.shape[1], "fsdp"):
        rows = constrain(rows, ("data", None, "fsdp"))
    return constrain(rows, TOKEN_AXES)


def forward_flops(config: TextConfig, tokens: int) -> float:
    """FLOPs of the forward pass of one text of so many tokens, padding included: the matmuls of the blocks."""
    dims = dimensions(config)
    return dims.depth * vit.block_flops(dims.width, dims.mlp, tokens)
