"""The released models by name: where they lie, how large they are, their licence, and what was published of them."""

import dataclasses
import difflib

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.models import vit

NON_COMMERCIAL = "CC-BY-NC 4.0 (no commercial use)"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of the pixels, of all of them
META = "https://dl.fbaipublicfiles.com"
FINETUNE, LINEAR = "configs/classify/in1k.py:init=", "configs/linear/in1k.py:model="
MILLIONS = {"b16": 86, "l16": 303, "h14": 631, "2b14": 1890, "6.5b14": 6448}  # parameters of the encoders
SIZES = {"b16": "B/16", "l16": "L/16", "h14": "H/14", "2b14": "2B/14", "6.5b14": "6.5B/14"}


@dataclasses.dataclass(frozen=True)
class Release:
    """One file.

    Attributes:
      url: where it is published.
      licence: of the weights.
      gigabytes: about, float32 parameters by arithmetic.
      figure: published result with its protocol, for the table of recipes.
      recipe: the config that measures it here, or what is lacking.
      size: of the encoder, as in `config.model.size`.
      side: of the square images that its positions are for, in pixels.
      sha256: of the file, once somebody has computed it; empty: not known.
      md5_prefix: the digits of the MD5 that the publisher prints; empty: none.
    """

    url: str
    licence: str
    gigabytes: float
    figure: str
    recipe: str
    size: str
    side: int = 224
    sha256: str = ""
    md5_prefix: str = ""

    def config(self) -> dict:
        """What the config of its run will say of the encoder and its images; all are ViTs of the usual dimensions."""
        width, depth, heads = vit.SIZES[self.size.partition("/")[0]]
        numbers = dict(width=width, depth=depth, heads=heads, mlp=4 * width)
        model = dict(size=self.size, **numbers, cls_token=True, norm_eps=1e-6)
        return dict(model=model, data=dict(image_size=self.side, mean=IMAGENET[0], std=IMAGENET[1]))


def _gigabytes(millions: float) -> float:
    return round(4 * millions / 1000, 2)


def _mae() -> dict[str, Release]:
    """facebookresearch/mae README.md and FINETUNE.md, on IN1k; figures at 224 after full finetuning."""
    out = {}
    for size, word, md5, tuned, top1, exact in (
        ("b16", "base", "8cad7c", "1b25e9", 83.6, 83.664),
        ("l16", "large", "b8b06e", "51f550", 85.9, 85.952),
        ("h14", "huge", "9bdbb0", "2541f2", 86.9, 86.928),
    ):
        name, url = f"mae_in1k:vit_{size}", f"{META}/mae"
        size_gb, with_decoder = _gigabytes(MILLIONS[size]), _gigabytes(MILLIONS[size] + 26)
        pretrained = f"{url}/pretrain/mae_pretrain_vit_{word}.pth"
        out[name] = Release(
            pretrained,
            NON_COMMERCIAL,
            size_gb,
            f"finetuned at 224: {top1}",
            FINETUNE + name,
            SIZES[size],
            md5_prefix=md5,
        )
        finetuned = f"{url}/finetune/mae_finetuned_vit_{word}.pth"
        out[f"{name}_ft_in1k"] = Release(
            finetuned, NON_COMMERCIAL, size_gb, f"at 224: {exact}", "evaluate", SIZES[size], md5_prefix=tuned
        )
        visualize = f"{url}/visualize/mae_visualize_vit_{word}.pth"
        out[f"{name}_decoder"] = Release(
            visualize, NON_COMMERCIAL, with_decoder, "reconstructions", "evaluate", SIZES[size]
        )
    return out


def _maws() -> dict[str, Release]:
    """facebookresearch/maws README.md and model_builder.py; `mae:` is its MAE on IG-3B."""
    out, url = {}, f"{META}/maws"
    for size, mae, linear, side, tuned in (
        ("b16", 83.5, 83.3, 512, 86.832),
        ("l16", 86.1, 86.1, 512, 88.796),
        ("h14", 87.4, 87.5, 518, 89.502),
        ("2b14", 87.8, 88.1, 518, 89.752),
        ("6.5b14", 88.3, 88.6, 518, 90.064),
    ):
        name, size_gb = f"vit_{size}", _gigabytes(MILLIONS[size])
        for family, folder, figure, recipe, pixels in (
            (f"mae:{name}", f"pretrain/mae/{name}", f"finetuned at 224: {mae}", f"{FINETUNE}mae:{name}", 224),
            (f"maws:{name}", f"pretrain/maws/{name}", f"linear at 224: {linear}", f"{LINEAR}maws:{name}", 224),
            (f"maws:{name}_ft_in1k", f"finetune/in1k/maws/{name}_{side}", f"at {side}: {tuned}", "evaluate", side),
        ):
            out[family] = Release(f"{url}/{folder}.pt", NON_COMMERCIAL, size_gb, figure, recipe, SIZES[size], pixels)
    for name, size, figure in (
        ("mae_in1k:vit_2b14", "2b14", "finetuned at 224: 87.4"),
        ("mae_in21k:vit_l16", "l16", "finetuned at 512: 86.9"),
    ):
        file = f"{url}/pretrain/{name.replace(':', '/')}.pt"
        out[name] = Release(file, NON_COMMERCIAL, _gigabytes(MILLIONS[size]), figure, FINETUNE + name, SIZES[size])
    for size, text, millions, zero_shot in (
        ("b16", "xlmr_b", 278, 74.9),
        ("l16", "xlmr_l", 559, 79.7),
        ("h14", "xlmr_l", 559, 81.1),
        ("2b14", "xlmr_l", 559, 82.1),
    ):
        file, size_gb = f"{url}/pretrain/clip/vit_{size}_{text}.pt", _gigabytes(MILLIONS[size] + millions)
        out[f"maws_clip:vit_{size}_{text}"] = Release(
            file,
            NON_COMMERCIAL,
            size_gb,
            f"zero-shot at 224: {zero_shot}",
            "none yet (needs the text tower)",
            SIZES[size],
        )
    return out


def _swag() -> dict[str, Release]:
    """facebookresearch/SWAG README.md."""
    out = {}
    for size, side, top1 in (("b16", 384, 85.29), ("l16", 512, 88.07), ("h14", 518, 88.55)):
        name, file, size_gb = f"swag:vit_{size}", f"{META}/SWAG/vit_{size}", _gigabytes(MILLIONS[size])
        out[name] = Release(f"{file}.torch", NON_COMMERCIAL, size_gb, "none at 224", LINEAR + name, SIZES[size])
        out[f"{name}_ft_in1k"] = Release(
            f"{file}_in1k.torch", NON_COMMERCIAL, size_gb, f"at {side}: {top1}", "evaluate", SIZES[size], side
        )
    return out


RELEASES = {**_mae(), **_maws(), **_swag()}


def find(name: str, key: str = "--from") -> Release | None:
    """The release of a name such as `maws:vit_b16`, or None for what is no name (a path or a URL).

    Args:
      name: what the user gave.
      key: what the user gave it with, for the error.

    Raises:
      UserError: it looks like a name and is none.
    """
    if name in RELEASES:
        return RELEASES[name]
    family, colon, rest = name.partition(":")
    if colon and "/" not in rest and family in {known.partition(":")[0] for known in RELEASES}:
        near = difflib.get_close_matches(name, RELEASES, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{key}: {name!r} is not a released model{hint} (convert --list shows all)")
    return None


def classifies_imagenet(source: str) -> bool:
    """Whether a path or URL ends in the name of a file that is released with a head for ImageNet-1k."""
    files = {release.url.rpartition("/")[2] for name, release in RELEASES.items() if name.endswith("_ft_in1k")}
    return source.rpartition("/")[2] in files


def table() -> str:
    """Text: every name with size, published figure, recipe, licence and source."""
    lines = ["Published figures are ImageNet-1k top-1, %; none was measured here (not run).", ""]
    for name, release in RELEASES.items():
        lines.append(f"{name:<28} about {release.gigabytes:>5.2f} GB   {release.figure:<24} {release.recipe}")
        lines.append(f"{'':<28} {release.licence}   {release.url}")
    return "\n".join(lines)
