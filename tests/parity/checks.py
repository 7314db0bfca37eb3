"""Compares our models with a reference case: imports its weights with `convert` and answers the same images."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from mae_pp_jax.commands import convert
from mae_pp_jax.core import checkpoint, leaves, storage
from mae_pp_jax.core.functional import Model, flatten, unflatten
from mae_pp_jax.interop import files, matching
from mae_pp_jax.models import adapters, mae, masking, positions, vit
from mae_pp_jax.stages import registry

LIMIT = 2e-5  # on max |ours - theirs| / max |theirs|; float32 in another order of summation


def load(run: pathlib.Path):
    """(stage, parameters) of a run."""
    stage = registry.create(registry.resolve(storage.read_json(run / "config.json"), saved=True))
    step = checkpoint.find(run)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = checkpoint.weights(run, step, average=False)
    wanted = {p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where) for p, s in shapes.items()}
    return stage, unflatten(leaves.read(shapes, wanted))


def difference(ours, theirs, scale: float | None = None) -> float:
    """max |ours - theirs| / max |theirs|, or / `scale`."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.max(np.abs(ours - theirs)) / (np.max(np.abs(theirs)) if scale is None else scale))


def scale_of(name: str, arrays) -> float:
    """What rounding of an array of a stored case is held against: its largest number.

    The bias of a key moves all scores of a query alike, so that its gradient is zero up to rounding: it is held against
    the gradient of the key's kernel, which is a sum of the same terms times tokens.
    """
    kernel = re.sub(r"^(gradient/.*\.)(key|k_proj)\.bias$", r"\1\2.weight", name)
    return float(np.max(np.abs(arrays[kernel])))


def weights_of(folder: pathlib.Path) -> pathlib.Path:
    """What `convert` is given: the folder for Hugging Face's, else the file."""
    if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
        return folder
    return next(p for p in sorted(folder.iterdir()) if p.name.startswith(("model.", "weights.")))


def check(folder: pathlib.Path, run: pathlib.Path) -> dict[str, float]:
    """Imports a case into the folder `run` and gives the difference of every answer, by name."""
    case = json.loads((folder / "case.json").read_text())
    convert.import_file(str(weights_of(folder)), str(run), **case)
    arrays = dict(np.load(folder / "arrays.npz"))
    stage, params = load(run)
    images = jnp.asarray(arrays["images"])
    if stage.config.stage == "mae":
        return _check_mae(folder, arrays, stage, params, images)
    found = {}
    encoder = {"encoder": params["encoder"], "head": params.get("head")}
    if stage.config.stage == "encoder":
        tokens = jax.jit(stage.model.apply)(encoder["encoder"], images)
    else:
        found["logits"] = difference(jax.jit(stage.model.apply)(encoder, images), arrays["logits"])
        if "mean" in arrays and stage.config.model.pool == "mean":
            own = Model(lambda rngs: vit.Encoder(stage.config.model, stage.image_size, rngs=rngs))
            features = jax.jit(lambda p, x: own.apply(p, x, method="features"))(encoder["encoder"], images)
            return found | {"mean": difference(features, arrays["mean"])}
        return found
    cls = int(stage.config.model.cls_token)
    return found | {
        "cls": difference(tokens[:, 0], arrays["cls"]),
        "mean": difference(tokens[:, cls:].mean(1), arrays["mean"]),
    }


def _check_mae(folder, arrays, stage, params, images) -> dict[str, float]:
    noise = jnp.asarray(arrays["noise"])

    @jax.jit
    def answer(params):
        def loss(params):
            out = stage.model.apply(params, images, noise=noise)
            return jnp.mean(out["loss"]), out

        (value, out), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return value, out["prediction"], gradients

    value, prediction, gradients = answer(params)
    config = stage.config
    encoder = Model(lambda rngs: vit.Encoder(config.model, stage.image_size, pooled=False, rngs=rngs))
    select, _ = masking.select_visible(noise, mae.visible_patches(config.mae, noise.shape[1]))
    latent = jax.jit(encoder.apply)(params["encoder"], images, select=select)
    found = {
        "latent": difference(latent, arrays["latent"]),
        "loss": difference(value[None], arrays["loss"]),
        "prediction": difference(prediction, arrays["prediction"]),
    }
    return found | _check_gradients(folder, flatten(gradients))


def _check_gradients(folder: pathlib.Path, ours: dict) -> dict[str, float]:
    """The gradient of every weight, brought into our shapes by the table that moved the weights."""
    stored = load_file(folder / "gradients.safetensors")
    theirs = {n.removeprefix("gradient/"): g for n, g in stored.items()}
    file = files.open_weights(weights_of(folder))
    # The gradients carry the names of the model in memory, which transformers saves under others.
    tensors = {n: files.Tensor(g.shape, g.dtype, lambda g=g: g) for n, g in theirs.items()}
    for name, tensor in file.tensors.items():
        if name.endswith(("position_embeddings", "decoder_pos_embed")):
            tensors[name] = tensor
    match = matching.match(folder, tensors, "huggingface", wrapped=False, encoder_only=False)
    found = {}
    for name, gradient in theirs.items():
        scale = scale_of(f"gradient/{name}", stored)
        place = matching.place(*match.rows[name], ours[match.rows[name][0].path].shape)
        found[f"gradient {name}"] = difference(ours[place.path][place.index], place.take(gradient), scale)
    return found


def adapters_of(kind: str, arrays: dict) -> dict[str, np.ndarray]:
    """Path → array of a kind's parameters, or of gradients that go by their names, brought into our shapes."""
    if kind in adapters.VPT:
        return {"prompt" if kind == "vpt_shallow" else "prompts": arrays["prompts"]}
    if kind == "adaptformer":
        names = {
            f"parallel/{part}/{ours}": f"{part}.{theirs}" for part in ("down", "up") for ours, theirs in DENSE.items()
        }
        return {path: np.swapaxes(arrays[n], 1, 2) if arrays[n].ndim == 3 else arrays[n] for path, n in names.items()}
    targets = {name.partition(".")[0] for name in arrays}
    return {f"lora/{t}/{l.lower()}": np.swapaxes(arrays[f"{t}.{l}"], 1, 2) for t in sorted(targets) for l in "AB"}


DENSE = {"kernel": "weight", "bias": "bias"}
KINDS = {
    "vpt_shallow": dict(tokens=3),
    "vpt_deep": dict(tokens=3),
    "adaptformer": dict(bottleneck=6),
    "lora": dict(rank=2, alpha=5.0, targets=adapters.TARGETS),
}


def check_adapters(folder: pathlib.Path, run: pathlib.Path) -> dict[str, float]:
    """Differences of tokens and of gradients of adapters, by kind, of the case of `adapter_references`."""
    convert.import_file(str(weights_of(folder)), str(run), **json.loads((folder / "case.json").read_text()))
    arrays = dict(np.load(folder / "arrays.npz"))
    stage, params = load(run)
    images, weight, found = jnp.asarray(arrays["images"]), jnp.asarray(arrays["weight"]), {}
    for kind, keys in KINDS.items():
        own = {name.removeprefix(f"{kind}/"): value for name, value in arrays.items() if name.startswith(f"{kind}/")}
        theirs = {n.removeprefix("gradient/"): own.pop(n) for n in list(own) if n.startswith("gradient/")}
        answer, config = own.pop("tokens"), adapters.AdapterConfig(kind=kind, **keys)

        def loss(leaves, config=config):
            ready = adapters.ready(config, leaves)
            tokens = stage.model.apply(params["encoder"], images, adapters=ready)
            return jnp.sum(tokens * weight), tokens

        leaves = unflatten({path: jnp.asarray(value) for path, value in adapters_of(kind, own).items()})
        shapes = jax.eval_shape(
            lambda: adapters.init(config, jax.random.key(0), **dict(depth=3, width=16, mlp=64, patch=4))
        )
        assert jax.tree.map(jnp.shape, leaves) == jax.tree.map(lambda s: s.shape, shapes)
        (_, tokens), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(leaves)
        found[f"{kind} tokens"] = difference(tokens, answer)
        theirs = adapters_of(kind, theirs)
        found |= {f"{kind} gradient {p}": difference(g, theirs[p]) for p, g in flatten(gradients).items()}
    return found


def check_positions(folder: pathlib.Path) -> dict[str, float]:
    """Differences of the resized tables of a case of `references.positions`."""
    arrays = dict(np.load(folder / "arrays.npz"))
    table = arrays.pop("table")
    found = {}
    for name, theirs in arrays.items():
        method, side = name.split("_")
        found[name] = difference(positions.resize(table, (int(side), int(side)), False, method=method), theirs)
    return found
