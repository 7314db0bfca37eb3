"""From a recognised file to the config of the run that it becomes: stage, model and input, as far as the file says."""

import math
import re
from collections.abc import Mapping

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.interop import released, text_layout
from mae_pp_jax.interop.files import WeightFile, number
from mae_pp_jax.interop.matching import Match
from mae_pp_jax.interop.tensors import refuse
from mae_pp_jax.models import vit

HALF = (0.5, 0.5, 0.5)  # mean and deviation of the pixels in Google's releases
DECODER_WIDTH, DECODER_HEADS = 512, 16  # of all published MAE decoders
# What settings beside a file may say, for the parts of the architecture that the code here has in one form alone.
ONLY = {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3}


def stage_of(match: Match) -> str:
    """Which stage's run the file becomes: mae with a decoder, classify with a head, else encoder."""
    return "mae" if "decoder" in match.groups else "classify" if "head" in match.groups else "encoder"


def config(file: WeightFile, match: Match, *, heads: int = 0, decoder_heads: int = 0, image_size: int = 0) -> dict:
    """The keys of the run's config that the file determines.

    Args:
      file: the file.
      match: what it was recognised as.
      heads: attention heads where neither the settings beside the file nor its width tell; 0: ask them.
      decoder_heads: the same for the decoder.
      image_size: side in pixels to resize positions to; 0: as the file's positions.

    Raises:
      UserError: heads or image size cannot be known or do not fit; pooling or architecture is not one of ours.
    """
    if match.format.tower == "text":
        if decoder_heads or image_size:
            raise UserError("--image_size, --decoder_heads: a text tower has neither; leave them out")
        return text_layout.config(file, match, heads=heads)
    settings, sizes, groups = file.settings, match.sizes, match.groups
    for name, value in ONLY.items():
        if settings.get(name, value) != value:
            raise refuse(file.path, f"its config.json says {name}={settings[name]!r}; only {value!r} is supported")
    cls = _has(match, "cls_token")
    norms = [n for n in ("norm", "fc_norm") if _has(match, f"{n}/scale")]
    if len(norms) != 1:
        found = "both norm and fc_norm" if norms else "neither norm nor fc_norm"
        raise refuse(file.path, f"holds {found}; a model here ends in one of them")
    if norms == ["norm"] and not cls and "head" in groups:
        raise refuse(file.path, "its head takes the mean after norm, which no stage here does; try --encoder_only")
    if norms == ["norm"] and "head" in groups and settings.get("global_pool", "token") != "token":
        raise refuse(file.path, "its head takes the mean after norm, which no stage here does; try --encoder_only")
    own = image_side(file, match)
    patch, width, depth = sizes["p"], sizes["D"], match.depths["encoder/blocks"]
    name = next((n for n, (w, d, _) in vit.SIZES.items() if (w, d) == (width, depth)), "Ti")
    model = dict(
        size=f"{name}/{patch}",
        width=width,
        depth=depth,
        heads=heads or _heads(file, match, width),
        mlp=sizes["M"],
        cls_token=cls,
        pool="mean" if norms == ["fc_norm"] else "cls",
        norm_eps=number(file, "layer_norm_eps", 1e-6),
        drop_path=0.0,
    )
    mean, std = pixel_statistics(file, match)
    out: dict = dict(
        stage=stage_of(match),
        model=model,
        data=dict(
            name="imagenet2012",
            image_size=image_size or own,
            mean=list(mean),
            std=list(std),
        ),
        evals=dict(test=dict(split="validation", **_evaluation_crop(file, match, image_size or own))),
    )
    if out["stage"] == "classify":
        out["declared"] = dict(classes=sizes["C"])
    if out["stage"] == "mae":
        model["positions"] = "sincos"
        out["mae"] = _decoder(file, match, decoder_heads)
    if "projection" in groups:
        out["projection"] = sizes["E"]
    return out


def class_names(file: WeightFile, match: Match) -> tuple[str, ...]:
    """The names of the classes in the order of the head, as the settings beside the file say; empty: not known.

    transformers keeps them as `id2label` (and writes LABEL_0, LABEL_1 … where nobody named them), timm as
    `label_names`.

    Raises:
      UserError: there are names for another number of classes than the head has.
    """
    timm = file.settings.get("pretrained_cfg", {})
    found = file.settings.get("id2label") or file.settings.get("label_names")
    found = found or (timm.get("label_names") if isinstance(timm, Mapping) else None)
    if "head" not in match.groups or not found:
        return ()
    if isinstance(found, Mapping):
        numbers = [str(i) for i in range(len(found))]
        names = tuple(str(found[i]) for i in numbers) if set(map(str, found)) == set(numbers) else ()
        if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
            return ()
    else:
        names = tuple(map(str, found)) if isinstance(found, list) else ()
    if len(names) != match.sizes["C"]:
        raise refuse(
            file.path,
            f"its config.json names {len(found)} classes and its head has {match.sizes['C']}; correct id2label there, or "
            "take it out",
        )
    return names


def image_side(file: WeightFile, match: Match) -> int:
    """Side in pixels of the images that the file's positions are for."""
    tokens = match.sizes.get("T", match.sizes.get("N"))
    has_cls = "T" in match.sizes and _has(match, "cls_token")
    side = math.isqrt(tokens - has_cls)
    if side * side != tokens - has_cls:
        raise refuse(
            file.path,
            f"its {tokens} positions are no square grid{' and a class token' if has_cls else ''}; only those are read",
        )
    return side * match.sizes["p"]


def pixel_statistics(file: WeightFile, match: Match) -> tuple:
    """Mean and deviation of each channel: as the settings beside the file say, else as its publisher uses."""
    settings = file.settings
    timm = settings.get("pretrained_cfg", settings)
    for group, names in ((settings, ("image_mean", "image_std")), (timm, ("mean", "std"))):
        if isinstance(group, Mapping) and all(isinstance(group.get(n), list) and len(group[n]) == 3 for n in names):
            return tuple(tuple(map(float, group[n])) for n in names)
    if match.format.name in ("big_vision", "vision_transformer"):
        return HALF, HALF
    return released.IMAGENET


def _evaluation_crop(file: WeightFile, match: Match, side: int) -> dict:
    """How the publisher of a finetuned model makes evaluation images square, as keys of `evals.test`.

    Sources: maws eval_finetuned.py, facebookresearch/mae util/datasets.py, transformers' ViTImageProcessor (whose
    `resample` is Pillow's number of a filter, bilinear where it says none), timm's pretrained_cfg.
    """
    if "head" not in match.groups:
        return {}
    if match.format.name == "maws":
        return {"crop": "squeeze", "resize": "bicubic"}
    if match.format.name == "huggingface":
        resample = file.settings.get("resample", 2)
        return {"crop": "squeeze", "resize": {2: "bilinear", 3: "bicubic"}.get(resample, "area")}
    if match.format.name == "mae":
        return {"share": 0.875 if side <= 224 else 1.0, "resize": "bicubic"}
    timm, found = file.settings.get("pretrained_cfg", {}), {}
    if isinstance(timm, Mapping) and isinstance(share := timm.get("crop_pct"), float) and 0.01 <= share <= 1:
        found["share"] = share
    if isinstance(timm, Mapping) and timm.get("interpolation") in ("bilinear", "bicubic"):
        found["resize"] = timm["interpolation"]
    return found


def _has(match: Match, name: str) -> bool:
    return any(row.path == f"encoder/{name}" for row, _ in match.rows.values())


def _heads(file: WeightFile, match: Match, width: int) -> int:
    if "H" in match.sizes:
        return match.sizes["H"]
    if found := int(number(file, "num_attention_heads", 0)):
        return found
    known = {w: h for w, _, h in vit.SIZES.values()}
    if width not in known:
        raise UserError(
            f"--heads: {file.path} does not say how many attention heads its width {width} has; give --heads=N"
        )
    return known[width]


def _decoder(file: WeightFile, match: Match, heads: int) -> dict:
    settings, width = file.settings, match.sizes["d"]
    usual = DECODER_HEADS if width == DECODER_WIDTH else 0
    heads = heads or int(number(file, "decoder_num_attention_heads", usual))
    if not heads:
        raise UserError(
            f"--decoder_heads: {file.path} does not say how many attention heads its decoder of width {width} has; "
            "give --decoder_heads=N"
        )
    return dict(
        decoder_width=width,
        decoder_depth=match.depths["decoder/blocks"],
        decoder_heads=heads,
        decoder_mlp=match.sizes["m"],
        mask_ratio=number(file, "mask_ratio", 0.75),
        # facebookresearch/mae's released models were trained with it; Hugging Face's settings say.
        normalize_target=bool(settings.get("norm_pix_loss", True)),
    )
