"""The tables of names: how each public format calls and shapes every parameter of ours. One table serves both ways.

A row says: under this key, with this shape, stands that parameter of ours after reordering its axes by `order` and
reshaping. Written shapes are names of sizes, so that a table also infers a model's sizes from a file:

  D width   M mlp   T tokens   p side of a patch   C classes   H heads   h width of a head   N patches
  d, m, t   width, mlp and tokens of the decoder   X numbers in a patch (3 · p · p)   E width of a projection
  V, P   rows of a text tower's tables of tokens and of positions   Y token types   F width of the other tower

A number before a name multiplies it (3D). `{i}` in a key is the number of a block; our blocks lie stacked on a leading
axis. Rows of a group other than "" may be absent, all together.
"""

import dataclasses
from collections.abc import Sequence

TRANSPOSED = (1, 0)  # torch's Linear keeps [out, in], we [in, out]
CONVOLUTION = (2, 3, 1, 0)  # [out, rgb, row, column] → [row, column, rgb, out], as `vit.patchify` orders pixels


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter pattern.

    Attributes:
      key: name in the file, with `{i}` for the number of a block.
      shape: shape in the file, names of sizes apart by spaces.
      path: our parameter; empty for what is read but has no place here.
      order: permutation of the file's axes before the reshape; empty: as they are.
      part: which of query (0), key (1), value (2) it is, where the file keeps them apart.
      skip: rows of our parameter to pass over, filled with zeros: 1 for positions without a row for the class token.
      group: rows that are present or absent together; "" must be present.
      plus: key of a table whose first row is added to every row of this one, if the file has it.
    """

    key: str
    shape: str
    path: str
    order: tuple[int, ...] = ()
    part: int | None = None
    skip: int = 0
    group: str = ""
    plus: str = ""


@dataclasses.dataclass(frozen=True)
class Format:
    """The table of one format.

    Attributes:
      name: as `--format` and `--to-format` say it.
      rows: its table; the first rows fix the sizes, so that an error blames the key that differs from them.
      positions: how the original code resizes positions, a name of `positions.METHODS`; "": it does not.
      tower: what it reads, "image" or "text"; a file of both towers has a table for each.
    """

    name: str
    rows: tuple[Row, ...]
    positions: str
    tower: str = "image"


def norm(key: str, path: str, width: str, group: str = "", names=("weight", "bias")) -> list[Row]:
    """Scale and bias of a LayerNorm."""
    return [
        Row(f"{key}.{names[0]}", width, f"{path}/scale", group=group),
        Row(f"{key}.{names[1]}", width, f"{path}/bias", group=group),
    ]


def linear(key: str, path: str, inner: str, outer: str, group: str = "") -> list[Row]:
    """Weight and bias of one of torch's Linear layers."""
    return [
        Row(f"{key}.weight", f"{outer} {inner}", f"{path}/kernel", TRANSPOSED, group=group),
        Row(f"{key}.bias", outer, f"{path}/bias", group=group),
    ]


def block(
    key: str, path: str, names: Sequence[str], D: str, M: str, group: str = "", norms=("weight", "bias")
) -> list[Row]:
    """A transformer block.

    Args:
      key: what its keys begin with, ending in a dot.
      path: our stack of blocks.
      names: what the format calls norm1, query-key-value, attention's output, norm2, fc1 and fc2. Query, key and value
        are one name of fused weights or three, separated by spaces; a fused name that ends in "_" goes on in
        `weight` and `bias` without a dot.
      D: name of the width.
      M: name of the MLP's hidden width.
      group: group of all rows.
      norms: what it calls scale and bias of a norm.
    """
    norm1, qkv, proj, norm2, fc1, fc2 = (key + name if " " not in name else name for name in names)
    kernel, bias = f"{path}/attn/qkv/kernel", f"{path}/attn/qkv/bias"
    rows = norm(norm1, f"{path}/norm1", D, group, norms)
    if " " in qkv:
        for part, name in enumerate(qkv.split()):
            rows.append(Row(f"{key}{name}.weight", f"{D} {D}", kernel, TRANSPOSED, part, group=group))
            rows.append(Row(f"{key}{name}.bias", D, bias, part=part, group=group))
    else:
        dot = "" if qkv.endswith("_") else "."
        rows.append(Row(f"{qkv}{dot}weight", f"3{D} {D}", kernel, TRANSPOSED, group=group))
        rows.append(Row(f"{qkv}{dot}bias", f"3{D}", bias, group=group))
    rows += linear(proj, f"{path}/attn/proj", D, D, group)
    rows += norm(norm2, f"{path}/norm2", D, group, norms)
    rows += linear(fc1, f"{path}/mlp/fc1", D, M, group) + linear(fc2, f"{path}/mlp/fc2", M, D, group)
    return rows


TIMM_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
SWAG_BLOCK = ("ln_1", "self_attention.in_proj_", "self_attention.out_proj", "ln_2", "mlp.linear_1", "mlp.linear_2")
TORCHVISION_BLOCK = (*SWAG_BLOCK[:4], "mlp.0", "mlp.3")
HUGGINGFACE_BLOCK = (
    "layernorm_before",
    "attention.attention.query attention.attention.key attention.attention.value",
    "attention.output.dense",
    "layernorm_after",
    "intermediate.dense",
    "output.dense",
)
# The names of transformers 5 in memory, which `torch.save(model.state_dict(), …)` writes.
HUGGINGFACE_5_BLOCK = (
    "layernorm_before",
    "attention.q_proj attention.k_proj attention.v_proj",
    "attention.o_proj",
    "layernorm_after",
    "mlp.fc1",
    "mlp.fc2",
)


HUGGINGFACE_TEXT_BLOCK = (
    "attention.output.LayerNorm",
    "attention.self.query attention.self.key attention.self.value",
    "attention.output.dense",
    "output.LayerNorm",
    "intermediate.dense",
    "output.dense",
)
TORCHTEXT_BLOCK = (
    "attention_layer_norm",
    "attention.input_projection",
    "attention.output_projection",
    "final_layer_norm",
    "residual_mlp.mlp.0",
    "residual_mlp.mlp.3",
)


def timm(prefix: str = "") -> list[Row]:
    """timm's VisionTransformer, which facebookresearch/mae and MAWS build on."""
    return [
        Row(f"{prefix}patch_embed.proj.weight", "D 3 p p", "encoder/patch_embed/kernel", CONVOLUTION),
        Row(f"{prefix}patch_embed.proj.bias", "D", "encoder/patch_embed/bias"),
        Row(f"{prefix}pos_embed", "1 T D", "encoder/pos_embed"),
        Row(f"{prefix}cls_token", "1 1 D", "encoder/cls_token", group="cls_token"),
        *block(f"{prefix}blocks.{{i}}.", "encoder/blocks", TIMM_BLOCK, "D", "M"),
        *norm(f"{prefix}norm", "encoder/norm", "D", "norm"),
        *norm(f"{prefix}fc_norm", "encoder/fc_norm", "D", "fc_norm"),
    ]


# facebookresearch/mae models_mae.py; the channels of decoder_pred are (row, column, rgb), as ours.
MAE_DECODER = [
    *linear("decoder_embed", "decoder/embed", "D", "d", "decoder"),
    Row("mask_token", "1 1 d", "decoder/mask_token", group="decoder"),
    Row("decoder_pos_embed", "1 t d", "decoder/pos_embed", group="decoder"),
    *block("decoder_blocks.{i}.", "decoder/blocks", TIMM_BLOCK, "d", "m", "decoder"),
    *norm("decoder_norm", "decoder/norm", "d", "decoder"),
    *linear("decoder_pred", "decoder/pred", "d", "X", "decoder"),
]

# MAWS model.py: image feature = class token after `norm` @ vision_projection, text feature = first token @
# text_projection. Each tower becomes a run of its own; the temperature goes with the images'.
MAWS_CLIP = [
    *timm("vision_encoder."),
    Row("vision_projection", "D E", "projection/kernel", group="projection"),
    Row("logit_scale", "", "logit_scale", group="projection"),
    Row("text_projection", "F E", "", group="text"),
    Row("text_encoder.*", "*", "", group="text"),
]
_TORCHTEXT = "text_encoder.encoder.transformer"
MAWS_CLIP_TEXT = [
    Row(f"{_TORCHTEXT}.token_embedding.weight", "V D", "text/token_embed"),
    Row(f"{_TORCHTEXT}.positional_embedding.embedding.weight", "P D", "text/pos_embed"),
    *norm(f"{_TORCHTEXT}.embedding_layer_norm", "text/embed_norm", "D"),
    *block(f"{_TORCHTEXT}.layers.{{i}}.", "text/blocks", TORCHTEXT_BLOCK, "D", "M"),
    Row("text_projection", "D E", "projection/kernel", group="projection"),
    Row("vision_projection", "F E", "", group="image"),
    Row("logit_scale", "", "", group="image"),
    Row("vision_encoder.*", "*", "", group="image"),
]


def huggingface_text(prefix: str, norms: Sequence[str]) -> Format:
    """transformers' BERT, RoBERTa and XLM-R.

    Args:
      prefix: "bert." or "roberta." within a model for a task, "" alone.
      norms: what scale and bias of a norm are called: weight and bias, or gamma and beta in BERT's first releases.
    """
    embeddings, layer = f"{prefix}embeddings", f"{prefix}encoder.layer.{{i}}."
    types = f"{embeddings}.token_type_embeddings.weight"
    rows = [
        Row(f"{embeddings}.word_embeddings.weight", "V D", "text/token_embed"),
        Row(f"{embeddings}.position_embeddings.weight", "P D", "text/pos_embed", plus=types),
        *norm(f"{embeddings}.LayerNorm", "text/embed_norm", "D", names=norms),
        *block(layer, "text/blocks", HUGGINGFACE_TEXT_BLOCK, "D", "M", norms=norms),
        Row(types, "Y D", "", group="token_types"),
        Row(f"{embeddings}.position_ids", "1 P", "", group="position_ids"),
        Row(f"{prefix}pooler.dense.weight", "D D", "", group="pooler"),
        Row(f"{prefix}pooler.dense.bias", "D", "", group="pooler"),
    ]
    if prefix:
        rows += [Row(f"{task}.*", "*", "", group="task") for task in ("cls", "lm_head", "classifier", "qa_outputs")]
    return Format("huggingface", tuple(rows), "", "text")


def huggingface(prefix: str, layer: str, names: Sequence[str]) -> list[Row]:
    """transformers' ViT encoder.

    Args:
      prefix: "vit." within a model for a task, "" alone.
      layer: what the blocks' keys begin with.
      names: of the parts of a block.
    """
    embeddings = f"{prefix}embeddings"
    projection = f"{embeddings}.patch_embeddings.projection"
    return [
        Row(f"{projection}.weight", "D 3 p p", "encoder/patch_embed/kernel", CONVOLUTION),
        Row(f"{projection}.bias", "D", "encoder/patch_embed/bias"),
        Row(f"{embeddings}.position_embeddings", "1 T D", "encoder/pos_embed"),
        Row(f"{embeddings}.cls_token", "1 1 D", "encoder/cls_token"),
        *block(f"{prefix}{layer}.{{i}}.", "encoder/blocks", names, "D", "M"),
        *norm(f"{prefix}layernorm", "encoder/norm", "D", "norm"),
        Row(f"{embeddings}.mask_token", "1 1 D", "", group="mask_token"),
        Row(f"{prefix}pooler.dense.weight", "D D", "", group="pooler"),
        Row(f"{prefix}pooler.dense.bias", "D", "", group="pooler"),
    ]


def huggingface_decoder(layer: str, names: Sequence[str]) -> list[Row]:
    """The decoder of transformers' ViTMAEForPreTraining."""
    return [
        *linear("decoder.decoder_embed", "decoder/embed", "D", "d", "decoder"),
        Row("decoder.mask_token", "1 1 d", "decoder/mask_token", group="decoder"),
        Row("decoder.decoder_pos_embed", "1 t d", "decoder/pos_embed", group="decoder"),
        *block(f"decoder.{layer}.{{i}}.", "decoder/blocks", names, "d", "m", "decoder"),
        *norm("decoder.decoder_norm", "decoder/norm", "d", "decoder"),
        *linear("decoder.decoder_pred", "decoder/pred", "d", "X", "decoder"),
    ]


HUGGINGFACE_HEAD = linear("classifier", "head", "D", "C", "head")


def swag(layer: str, positions: str, head: str, names: Sequence[str]) -> list[Row]:
    """SWAG's VisionTransformer and its descendant in torchvision."""
    return [
        Row("conv_proj.weight", "D 3 p p", "encoder/patch_embed/kernel", CONVOLUTION),
        Row("conv_proj.bias", "D", "encoder/patch_embed/bias"),
        Row("encoder.pos_embedding", positions, "encoder/pos_embed"),
        Row("class_token", "1 1 D", "encoder/cls_token"),
        *block(f"encoder.layers.{layer}.", "encoder/blocks", names, "D", "M"),
        *norm("encoder.ln", "encoder/norm", "D"),
        *linear(head, "head", "D", "C", "head"),
    ]


def flax(name: str, norms: tuple[str, str], attention: str, mlp: str, positions: Sequence[Row]) -> Format:
    """big_vision's ViT and its forerunner in google-research/vision_transformer: flax keeps [in, out] as we do.

    Args:
      name: of the format.
      norms: modules of the two LayerNorms of a block.
      attention: module of the attention.
      mlp: module of the MLP.
      positions: the row of the position table.
    """
    layer, ours = "Transformer/encoderblock_{i}", "encoder/blocks"
    rows = [
        Row("embedding/kernel", "p p 3 D", "encoder/patch_embed/kernel"),
        Row("embedding/bias", "D", "encoder/patch_embed/bias"),
        *positions,
        Row("cls", "1 1 D", "encoder/cls_token", group="cls_token"),
    ]
    for number, module in enumerate(norms, 1):
        rows.append(Row(f"{layer}/{module}/scale", "D", f"{ours}/norm{number}/scale"))
        rows.append(Row(f"{layer}/{module}/bias", "D", f"{ours}/norm{number}/bias"))
    for part, letter in enumerate(("query", "key", "value")):
        rows.append(Row(f"{layer}/{attention}/{letter}/kernel", "D H h", f"{ours}/attn/qkv/kernel", part=part))
        rows.append(Row(f"{layer}/{attention}/{letter}/bias", "H h", f"{ours}/attn/qkv/bias", part=part))
    rows.append(Row(f"{layer}/{attention}/out/kernel", "H h D", f"{ours}/attn/proj/kernel"))
    rows.append(Row(f"{layer}/{attention}/out/bias", "D", f"{ours}/attn/proj/bias"))
    for dense, fc, inner, outer in (("Dense_0", "fc1", "D", "M"), ("Dense_1", "fc2", "M", "D")):
        rows.append(Row(f"{layer}/{mlp}/{dense}/kernel", f"{inner} {outer}", f"{ours}/mlp/{fc}/kernel"))
        rows.append(Row(f"{layer}/{mlp}/{dense}/bias", outer, f"{ours}/mlp/{fc}/bias"))
    rows += [
        Row("Transformer/encoder_norm/scale", "D", "encoder/norm/scale"),
        Row("Transformer/encoder_norm/bias", "D", "encoder/norm/bias"),
        Row("head/kernel", "D C", "head/kernel", group="head"),
        Row("head/bias", "C", "head/bias", group="head"),
    ]
    return Format(name, tuple(rows), "mae")


def _huggingface_formats() -> list[Format]:
    out = []
    for layer, decoder, names in (
        ("encoder.layer", "decoder_layers", HUGGINGFACE_BLOCK),
        ("encoder.layer", "decoder_encoder.layer", HUGGINGFACE_BLOCK),  # as transformers 5 saves it
        ("layers", "decoder_layers", HUGGINGFACE_5_BLOCK),
    ):
        whole = huggingface("vit.", layer, names)
        out.append(Format("huggingface", (*whole, *huggingface_decoder(decoder, names), *HUGGINGFACE_HEAD), "mae"))
        out.append(Format("huggingface", tuple(huggingface("", layer, names)), "mae"))
    return out


TIMM_HEAD = linear("head", "head", "D", "C", "head")
FORMATS = (
    Format("timm", (*timm(), *TIMM_HEAD), "timm"),
    Format("maws", (*timm(), *TIMM_HEAD), "timm"),
    Format("mae", (*timm(), *MAE_DECODER, *TIMM_HEAD), "mae"),
    Format("maws_clip", tuple(MAWS_CLIP), "timm"),
    *_huggingface_formats(),
    Format("swag", tuple(swag("layer_{i}", "T 1 D", "head.layers.head", SWAG_BLOCK)), "swag"),
    Format(
        "torchvision",
        tuple(swag("encoder_layer_{i}", "1 T D", "heads.head", TORCHVISION_BLOCK)),
        "swag",
    ),
    Format(
        "torchvision",
        tuple(swag("encoder_layer_{i}", "1 T D", "heads.head", SWAG_BLOCK)),
        "swag",
    ),
    flax(
        "big_vision",
        ("LayerNorm_0", "LayerNorm_1"),
        "MultiHeadDotProductAttention_0",
        "MlpBlock_0",
        # The class token, if any, joins after the positions were added.
        [Row("pos_embedding", "1 N D", "encoder/pos_embed", skip=1)],
    ),
    flax(
        "vision_transformer",
        ("LayerNorm_0", "LayerNorm_2"),
        "MultiHeadDotProductAttention_1",
        "MlpBlock_3",
        [Row("Transformer/posembed_input/pos_embedding", "1 T D", "encoder/pos_embed")],
    ),
    Format("maws_clip", tuple(MAWS_CLIP_TEXT), "", "text"),
    *(
        huggingface_text(p, norms)
        for norms in (("weight", "bias"), ("gamma", "beta"))
        for p in ("", "bert.", "roberta.")
    ),
)
TOWERS = ("image", "text")
NAMES = tuple(dict.fromkeys(f.name for f in FORMATS))
WRITTEN = ("timm", "huggingface", "mae", "maws")  # those that `exporting` writes
