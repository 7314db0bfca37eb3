"""LoRA's adapters merged into the weights of the encoder that they were trained on: an ordinary classifier again."""

from collections.abc import Iterator

import numpy as np

from mae_pp_jax.core import checkpoint, leaves, lineage, run_folder, storage
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.interop import importing, stream
from mae_pp_jax.models.adapters import AdapterConfig

# Kernel of the blocks → LoRA's targets in it.
KERNELS = {
    "encoder/blocks/attn/qkv/kernel": ("q", "k", "v"),
    "encoder/blocks/attn/proj/kernel": ("proj",),
    "encoder/blocks/mlp/fc1/kernel": ("fc1",),
    "encoder/blocks/mlp/fc2/kernel": ("fc2",),
}


def merge(run: storage.Path, to: storage.Path, split: int, step: str, *, epsilon: float) -> dict:
    """Writes one model of a low-shot run with LoRA as a run of stage `classify`.

    Args:
      run: folder of the run.
      to: the new folder.
      split: which of its draws; of several learning rates the model that was picked at the end of the run.
      step: checkpoint of the run, "last" or a number.
      epsilon: added to the variance where the stage normalises features.

    Returns:
      The content of `result.json`.

    Raises:
      UserError: no such run or split, a run without LoRA, the folder is taken or the disk is full; nothing was written.
    """
    importing.check_target(to)
    at = checkpoint.find(run, step, field="--from")
    meta = checkpoint.meta(run, at)
    config = meta["config"]
    kind = config.get("adapter", {}).get("kind", "none")
    if kind != "lora":
        what = f"adapters of kind {kind}" if kind != "none" else "no adapters"
        raise UserError(
            f"--merge: {run} (stage '{config['stage']}') has {what}; only LoRA (stage low_shot, adapter.kind=lora) is a "
            "change of weights and can be merged into them"
        )
    if not 0 <= split < config["splits"]:
        raise UserError(f"--merge: {run} has splits 0 to {config['splits'] - 1}, not {split}")
    model = split * len(config["lr_grid"]) + _picked(run, at, config, split)
    found = checkpoint.weights(run, at)
    parameters = {path: _pieces(path, found, config, model) for path in found if path.startswith("encoder/")}
    for name, value in _head(found, model, split, epsilon).items():
        parameters[f"head/{name}"] = stream.Pieces(value.shape, value.shape, lambda value=value: [((), value)])
    shared = ("model", "data", "evals", "declared", "seed", "global_batch")
    source = dict(run=str(run), stage=config["stage"], step=at, params_sha256=checkpoint.weights_sha256(run, at, found))
    joined, parents = lineage.join({"": {**source, "lineage": meta["lineage"], "parents": meta.get("parents")}})
    record = dict(dataset=meta["dataset"], lineage=joined, parents=parents, revision=run_folder.code_revision(), step=0)
    merged = {"stage": "classify", **{name: config[name] for name in shared}}
    said = f"merged split {split} of {run}, step {at}, adapter {config['adapter']}\n"
    return importing.write_folder(
        to,
        parameters,
        merged,
        {**record, "identity": meta.get("identity", {}), "wall_seconds": 0.0},
        said,
    )


def _picked(run: storage.Path, step: int, config: dict, split: int) -> int:
    """The place in `lr_grid` of the learning rate that was picked for a split."""
    if len(config["lr_grid"]) == 1:
        return 0
    result = storage.read_json(run / "result.json") if storage.is_file(run / "result.json") else {}
    names = (f"{name}/lr_factor_{split}" for name in config["evals"])
    picked = next((result["metrics"][name] for name in names if name in result.get("metrics", {})), None)
    if picked is None or result["step"] != step:
        raise UserError(
            f"--merge: which learning rate of config.lr_grid was picked stands in {run}/result.json for the last step of a "
            "finished run; train it to its end and merge its last checkpoint"
        )
    return config["lr_grid"].index(picked)


def _read(leaf: leaves.Leaf, *index: int) -> np.ndarray:
    return np.asarray(leaves.open_leaf(leaf)[index].read().result())


def _head(found: dict[str, leaves.Leaf], model: int, split: int, epsilon: float) -> dict[str, np.ndarray]:
    """The head of a model on features as they come, with the statistics that it has them normalised by."""
    kernel, bias = (_read(found[f"heads/{name}"], model).astype(np.float64) for name in ("kernel", "bias"))
    mean, variance = (_read(found[f"feature_norm/{name}"], split).astype(np.float64) for name in ("mean", "variance"))
    kernel = kernel / np.sqrt(variance + epsilon)[:, None]
    return {"kernel": kernel.astype(np.float32), "bias": (bias - mean @ kernel).astype(np.float32)}


def _pieces(path: str, found: dict[str, leaves.Leaf], config: dict, model: int) -> stream.Pieces:
    """A parameter of the encoder, a layer after another where it has layers, with what LoRA adds to it."""
    leaf = found[path]
    if not path.startswith("encoder/blocks/"):
        return stream.Pieces(leaf.shape, leaf.shape, lambda: [((), _read(leaf))])
    adapter = config_lib.resolve(AdapterConfig, config["adapter"])
    targets = [target for target in KERNELS.get(path, ()) if target in adapter.targets]

    def parts() -> Iterator[tuple[tuple, np.ndarray]]:
        for layer in range(leaf.shape[0]):
            kernel = _read(leaf, layer)
            for target in targets:
                a, b = (
                    _read(found[f"adapters/lora/{target}/{name}"], model, layer).astype(np.float64) for name in "ab"
                )
                part = kernel[:, "qkv".index(target)] if target in "qkv" else kernel
                part += (adapter.alpha / adapter.rank * (a @ b)).reshape(part.shape)
            yield (layer,), kernel

    return stream.Pieces(leaf.shape, (1, *leaf.shape[1:]), parts)
