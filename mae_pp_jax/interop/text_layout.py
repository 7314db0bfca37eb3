"""From a recognised text encoder to the config of the run that it becomes, and back to transformers' settings."""

from collections.abc import Mapping

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.interop.files import WeightFile, number
from mae_pp_jax.interop.matching import Match
from mae_pp_jax.interop.tensors import refuse
from mae_pp_jax.models import text

# What settings beside a file may say, for the parts of the architecture that the code here has in one form alone.
ONLY = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
FAMILIES = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta"}  # by model_type
HEADS = {dims.width: dims.heads for dims in text.SIZES.values()}
EPS = {"maws_clip": 1e-5, "huggingface": 1e-12}  # where no settings say: torchtext's, and the default of transformers


def config(file: WeightFile, match: Match, *, heads: int = 0) -> dict:
    """The keys of the run's config that the file determines.

    Args:
      file: the file.
      match: what it was recognised as.
      heads: attention heads where neither the settings beside the file nor its width tell; 0: ask them.

    Raises:
      UserError: heads or family cannot be known, or the architecture is not one of ours.
    """
    settings, sizes = file.settings, match.sizes
    for name, value in ONLY.items():
        if settings.get(name, value) != value:
            raise refuse(file.path, f"its config.json says {name}={settings[name]!r}; only {value!r} is supported")
    width, family = sizes["D"], _family(file, match)
    found = heads or int(number(file, "num_attention_heads", 0)) or HEADS.get(width)
    if not found:
        raise UserError(
            f"--heads: {file.path} does not say how many attention heads its width {width} has; give --heads=N"
        )
    usual = {"bert": "minilm_l6", "roberta": "xlmr_base"}[family]
    size = next((name for name, dims in text.SIZES.items() if (dims.width, dims.family) == (width, family)), usual)
    keys = dict(
        size=size,
        vocabulary=sizes["V"],
        positions=sizes["P"],
        width=width,
        depth=match.depths["text/blocks"],
        heads=found,
        mlp=sizes["M"],
        family=family,
        pad=int(number(file, "pad_token_id", text.SIZES[usual].pad)),
        norm_eps=number(file, "layer_norm_eps", EPS[match.format.name]),
        pool=_pool(file),
    )
    return dict(stage="text_encoder", text=keys, projection=sizes["E"] if "projection" in match.groups else 0)


def _family(file: WeightFile, match: Match) -> str:
    """Whether positions are counted as RoBERTa or as BERT does, which the weights do not tell."""
    if match.format.name == "maws_clip":
        return "roberta"
    kind = file.settings.get("model_type")
    if kind is None and (prefix := match.format.rows[0].key.partition("embeddings")[0]):
        return prefix.rstrip(".")
    if kind not in FAMILIES:
        said = f"says model_type={kind!r}" if kind is not None else "is absent or names no model_type"
        raise refuse(
            file.path, f"its config.json {said}; known: {', '.join(FAMILIES)}, which count positions differently"
        )
    return FAMILIES[kind]


def _pool(file: WeightFile) -> str:
    """The pooling that sentence-transformers' `1_Pooling/config.json` says; the first token where there is none."""
    modes = {name for name, value in file.settings.items() if name.startswith("pooling_mode_") and value is True}
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
    if len(modes) > 1 or modes - known.keys():
        raise refuse(
            file.path,
            f"its 1_Pooling/config.json says {', '.join(sorted(modes))}; a text encoder here has the mean or the first "
            "token; remove that file to take the first token",
        )
    return known[modes.pop()] if modes else "first"


def settings(run: Mapping) -> dict:
    """`config.json` of the model that transformers builds for the weights of a run with this config."""
    dims = text.dimensions(config_lib.resolve(text.TextConfig, run["text"]))
    roberta = dims.family == "roberta"
    return dict(
        architectures=["XLMRobertaModel" if roberta else "BertModel"],
        model_type="xlm-roberta" if roberta else "bert",
        vocab_size=dims.vocabulary,
        max_position_embeddings=dims.positions,
        type_vocab_size=1,
        hidden_size=dims.width,
        num_hidden_layers=dims.depth,
        num_attention_heads=dims.heads,
        intermediate_size=dims.mlp,
        hidden_act="gelu",
        layer_norm_eps=dims.norm_eps,
        pad_token_id=dims.pad,
    )
