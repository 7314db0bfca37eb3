"""Compares our text encoders with a case of `text_references`: imports its weights with `convert` and reads the same texts."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from mae_pp_jax.commands import convert
from mae_pp_jax.core.functional import flatten
from mae_pp_jax.interop import files, matching
from mae_pp_jax.models import text
from tests.parity import checks

OUTPUT_LIMIT, GRADIENT_LIMIT = 1e-5, 1e-4  # on max |ours - theirs| / max |theirs|


def check(folder: pathlib.Path, run: pathlib.Path) -> dict[str, float]:
    """Imports a case into the folder `run` and gives the difference of every answer and gradient, by name."""
    convert.import_file(str(checks.weights_of(folder)), str(run), **json.loads((folder / "case.json").read_text()))
    stage, params = checks.load(run)
    dims = text.dimensions(stage.config.text)
    arrays = dict(np.load(folder / "arrays.npz"))
    ids, kept = jnp.asarray(arrays["ids"]), arrays["ids"] != dims.pad

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # run once
    def answer(params):
        def loss(params):
            tokens = stage.model.apply(params, ids)
            return jnp.sum(tokens * arrays["weight"] * kept[:, :, None]), tokens

        (_, tokens), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return tokens, stage.model.apply(params, ids, method="features"), gradients

    tokens, features, gradients = answer(params["text"])
    found = {"tokens": checks.difference(tokens * kept[:, :, None], arrays["tokens"])}
    found["features"] = checks.difference(features, arrays[dims.pool])
    if "projected" in arrays:
        found["projected"] = checks.difference(features @ params["projection"]["kernel"], arrays["projected"])
    return found | _gradients(folder, flatten({"text": gradients}))


def _gradients(folder: pathlib.Path, ours: dict) -> dict[str, float]:
    """The gradient of every weight that has a place here, by the table that moved the weights."""
    stored = load_file(folder / "gradients.safetensors")
    file = files.open_weights(checks.weights_of(folder))
    match = matching.match(folder, file.tensors, "auto", wrapped=False, encoder_only=False, tower="text")
    found = {}
    for key, (row, i) in match.rows.items():
        if row.path in ours:
            name = f"gradient/{key}"
            place = matching.place(row, i, ours[row.path].shape)
            theirs = place.take(stored[name])
            scale = checks.scale_of(name, stored)
            found[f"gradient {key}"] = checks.difference(ours[place.path][place.index], theirs, scale)
        if row.plus in file.tensors:  # added to every position
            types = stored[f"gradient/{row.plus}"][0]
            found[f"gradient {row.plus}"] = checks.difference(ours[row.path].sum(0), types)
    return found
