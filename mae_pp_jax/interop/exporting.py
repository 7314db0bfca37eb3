"""The weights of a run as a file that the original code loads strictly; the tables of the way in serve the way out."""

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np

from mae_pp_jax.core import checkpoint, leaves, storage
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.interop import matching, safetensors_file, tables, text_layout, torch_file
from mae_pp_jax.interop.importing import bar
from mae_pp_jax.interop.tables import Format
from mae_pp_jax.interop.tensors import FLOATS, Tensor
from mae_pp_jax.models import mae as mae_lib
from mae_pp_jax.models import vit
from mae_pp_jax.models.patches import height_width

STAGES = ("encoder", "mae", "wsp", "classify", "text_encoder")
TORCH_SUFFIXES = (".pth", ".pt")
# Parts of a run that a format may lack; everything else must have a row.
OPTIONAL = ("head/", "decoder/", "projection/", "logit_scale")


@dataclasses.dataclass(frozen=True)
class Export:
    """A run in the names of another code base: `tensors` by key, `left` parameters without a place there."""

    format: Format
    tensors: Mapping[str, Tensor]
    left: tuple[str, ...]
    config: Mapping
    classes: tuple[str, ...] = ()  # names of the head's outputs, where they are known

    def report(self) -> str:
        """Text that names every key of the file and what stayed behind."""
        lines = [f"format {self.format.name}: {len(self.tensors)} tensors, {len(self.left)} parameters left"]
        lines += [f"  {key} {'×'.join(map(str, tensor.shape))} {tensor.dtype}" for key, tensor in self.tensors.items()]
        left = (*self.left, *(["names of the classes"] if self.classes and self.format.name != "huggingface" else []))
        return "\n".join([*lines, *(f"  {path} left: {self.format.name} has no place for it" for path in left)])


def plan(run: storage.Path, step: str, name: str, dtype: str) -> Export:
    """Finds the key and shape of every parameter of a run in a format.

    Args:
      run: folder of a run, trained here or imported.
      step: "last" or a number.
      name: of the format, one of `tables.WRITTEN`.
      dtype: of the numbers written, a name of `FLOATS`; "auto": as imported, float32 for what was trained here.

    Raises:
      UserError: no such run, or its model has no place in the format.
    """
    at = checkpoint.find(run, step, field="--from")
    meta = checkpoint.meta(run, at)
    config = meta["config"]
    if config["stage"] not in STAGES:
        raise UserError(f"--from: {run} is a run of stage '{config['stage']}'; only {', '.join(STAGES)} can be written")
    if config["stage"] != "text_encoder":
        _check_square(run, config)
    found = checkpoint.weights(run, at)
    shapes = {path: leaf.shape for path, leaf in found.items()}
    if dtype == "auto":
        dtype = checkpoint.imported_from(run, at).get("dtype", "float32")
        dtype = dtype if dtype in FLOATS else "float32"
    format = _choose(run, name, shapes)
    sizes, depths = _sizes(shapes), {s: shapes.get(f"{s}/norm1/scale", (0,))[0] for s in matching.STACKS}
    groups = {row.group for row in format.rows if row.path in shapes}
    tensors = {}
    for key, row, i in matching.expected(format, frozenset(groups), depths):
        if row.path not in shapes:
            if not row.path:
                continue
            raise UserError(f"--to-format: {name} needs {key}, which a model without {row.path} has not; use timm")
        place = matching.place(row, i, shapes[row.path])
        tensors[key] = _tensor(found[row.path], place, matching.shape_of(row, sizes), FLOATS[dtype])
        if row.plus:  # already added to ours
            shape = (1, sizes["D"])
            tensors[row.plus] = Tensor(shape, FLOATS[dtype], functools.partial(np.zeros, shape, FLOATS[dtype]))
    written = {row.path for row in format.rows}
    names = meta.get("identity", {}).get("hashtags" if config["stage"] == "wsp" else "label", ())
    classes = tuple(names) if "head/bias" in shapes else ()
    return Export(format, tensors, tuple(path for path in shapes if path not in written), config, classes)


def _check_square(run: storage.Path, config: Mapping) -> None:
    height, width = height_width(config["data"]["image_size"])
    if height != width:
        raise UserError(
            f"--from: {run} has images of {height}x{width} pixels, and files of other code bases hold positions of "
            "squares alone; train or resize it at a square data.image_size first"
        )


def _choose(run: storage.Path, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Format:
    """The table of a format that holds the most of a run and nothing else, and all of its encoder."""
    best, tower = None, "text" if "text/token_embed" in shapes else "image"
    candidates = [f for f in tables.FORMATS if f.name == name and f.tower == tower]
    if not candidates:
        raise UserError(f"--to-format: {name} has no place for the text encoder of {run}; use huggingface")
    for candidate in candidates:
        paths = {row.path for row in candidate.rows}
        lacking = [path for path in shapes if path not in paths and not path.startswith(OPTIONAL)]
        if lacking:
            raise UserError(f"--to-format: {name} has no place for {lacking[0]} of {run}; use timm")
        score = (len(paths & set(shapes)), -len(paths))
        if best is None or score > best[0]:
            best = (score, candidate)
    if name == "maws" and "encoder/fc_norm/scale" in shapes:
        raise UserError(
            f"--to-format: maws has no place for encoder/fc_norm of {run} (its models end in norm); use timm"
        )
    return best[1]


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The sizes of `tables` from the shapes of a run's parameters."""
    if "text/token_embed" in shapes:
        (rows, width), (positions, _) = shapes["text/token_embed"], shapes["text/pos_embed"]
        return dict(V=rows, P=positions, D=width, M=shapes["text/blocks/mlp/fc1/bias"][-1])
    tokens, width = shapes["encoder/pos_embed"]
    sizes = dict(T=tokens, D=width, p=math.isqrt(shapes["encoder/patch_embed/kernel"][0] // 3))
    sizes["M"] = shapes["encoder/blocks/mlp/fc1/bias"][-1]
    if "head/bias" in shapes:
        sizes["C"] = shapes["head/bias"][0]
    if "decoder/pos_embed" in shapes:
        sizes["t"], sizes["d"] = shapes["decoder/pos_embed"]
        sizes |= dict(m=shapes["decoder/blocks/mlp/fc1/bias"][-1], X=shapes["decoder/pred/bias"][0])
    return sizes


def _tensor(leaf: leaves.Leaf, place: matching.Place, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    def read() -> np.ndarray:
        store = leaves.open_leaf(leaf)
        return place.give(np.asarray(store[place.index].read().result()), shape).astype(dtype)

    return Tensor(shape, dtype, read)


def check_target(to: storage.Path, name: str) -> None:
    """Raises `UserError` unless the format is one that is written and the target has a name of it, and is free."""
    if name not in tables.WRITTEN:
        raise UserError(f"--to-format: {name!r} is not one of {', '.join(tables.WRITTEN)}")
    suffixes = TORCH_SUFFIXES if name in ("mae", "maws") else (".safetensors", *TORCH_SUFFIXES)
    if name == "huggingface" and to.suffix in (".safetensors", *TORCH_SUFFIXES):
        raise UserError(f"--to: {to} names a file; huggingface is a folder with model.safetensors and config.json")
    if name != "huggingface" and to.suffix not in suffixes:
        raise UserError(f"--to: {to} must end in {' or '.join(suffixes)} for --to-format={name}")
    if storage.exists(to):
        raise UserError(f"--to: {to} exists already; give a new {'folder' if name == 'huggingface' else 'file'}")
    storage.check_writable(to, "--to", folder=name == "huggingface")


def write(to: storage.Path, export: Export) -> None:
    """Writes the file, or for huggingface the folder; it appears whole or not at all.

    Raises:
      UserError: the target is taken, has a name of another format, or the disk is full.
    """
    name = export.format.name
    check_target(to, name)
    half = to.with_name(f".{to.name}.converting")
    storage.remove(half)  # of a conversion that was killed
    try:
        with storage.writing(to, "--to"), bar("writing", sum(t.nbytes for t in export.tensors.values())) as progress:
            storage.make_folder(to.parent)
            if name == "huggingface":
                storage.make_folder(half)
                safetensors_file.write(half / "model.safetensors", export.tensors, progress.update)
                for file, content in _huggingface_settings(export).items():
                    storage.write_json(half / file, content)
            elif to.suffix == ".safetensors":
                safetensors_file.write(half, export.tensors, progress.update)
            else:
                torch_file.write(half, export.tensors, "model" if name == "mae" else None, progress.update)
            storage.move(half, to)
    except BaseException:
        storage.remove(half)
        raise


def _huggingface_settings(export: Export) -> dict[str, dict]:
    """`config.json`, and for images `preprocessor_config.json`, of the model that transformers builds for these weights."""
    config = export.config
    if config["stage"] == "text_encoder":
        return {"config.json": text_layout.settings(config)}
    model, data = config_lib.resolve(vit.VitConfig, config["model"]), config["data"]
    dims = vit.dimensions(model)
    side, _ = height_width(data["image_size"])
    settings: dict = dict(
        architectures=["ViTModel"],
        model_type="vit",
        hidden_size=dims.width,
        num_hidden_layers=dims.depth,
        num_attention_heads=dims.heads,
        intermediate_size=dims.mlp,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=model.norm_eps,
        image_size=side,
        patch_size=dims.patch,
        num_channels=3,
        qkv_bias=True,
    )
    if "decoder.mask_token" in export.tensors:
        decoder = config_lib.resolve(mae_lib.MaeConfig, config["mae"])
        settings |= dict(
            architectures=["ViTMAEForPreTraining"],
            model_type="vit_mae",
            decoder_hidden_size=decoder.decoder_width,
            decoder_num_hidden_layers=decoder.decoder_depth,
            decoder_num_attention_heads=decoder.decoder_heads,
            decoder_intermediate_size=mae_lib.decoder_mlp(decoder),
            mask_ratio=decoder.mask_ratio,
            norm_pix_loss=decoder.normalize_target,
        )
    elif "classifier.bias" in export.tensors:
        names = export.classes or [f"LABEL_{i}" for i in range(export.tensors["classifier.bias"].shape[0])]
        settings |= dict(
            architectures=["ViTForImageClassification"],
            id2label={str(i): name for i, name in enumerate(names)},
            label2id={name: i for i, name in enumerate(names)},
        )
    pixels = dict(
        image_processor_type="ViTImageProcessor",
        do_resize=True,
        size=dict(height=side, width=side),
        resample=3,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=data["mean"],
        image_std=data["std"],
    )
    return {"config.json": settings, "preprocessor_config.json": pixels}
