"""Random training files: the weights in them are found, every tensor is accounted for, and nothing is guessed."""

import copy
import pathlib
import re
import tempfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.interop import files
from tests.interop.conftest import draw_weights, write_tree

FORMATS = {name: draw_weights(name, "cls_token", "norm", "head") for name in ("timm", "huggingface", "torchvision")}
AVERAGE = {name: draw_weights(name, "cls_token", "norm", "head", seed=1) for name in FORMATS}
PREFIX = st.lists(st.sampled_from(["module.", "_orig_mod.", "model.", "backbone.", "net.", "encoder."]), max_size=3)
WRAPPERS = st.lists(st.sampled_from(["model", "state_dict", "module", "network", "0", "a b"]), max_size=2)
BESIDE = st.dictionaries(
    st.sampled_from(["optimizer", "rng_state", "epoch", "loss", "args", "queue", "scheduler", "best_acc"])
    | st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=3),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3) | st.sampled_from([np.ones(3, np.float32), np.array(2)]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 9) | st.just("exp_avg"), inner),
        max_leaves=6,
    ),
    max_size=4,
)
AVERAGED = st.sampled_from(["", "ema", "model_ema", "state_dict_ema", "swa_model"])


def _wrapped(weights, prefix, wrappers, beside):
    tree = {"".join(prefix) + key: value for key, value in weights.items()}
    for name in wrappers:
        tree = {**copy.deepcopy(beside), name: tree}
    return tree


def _tensors(node) -> int:
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return isinstance(node, np.ndarray) + sum(map(_tensors, parts))


def _accounted(left) -> int:
    return sum(int(n[1]) for what in left.values() if (n := re.match(r"(\d+) tensors?, [\d,]+ bytes, \w", what)))


def _property(folder, format, prefix, wrappers, beside, averaged):
    weights, average = FORMATS[format], AVERAGE[format]
    tree = _wrapped(weights, prefix, wrappers, beside)
    if averaged:
        tree = {"weights": tree, averaged: _wrapped(average, prefix, wrappers[:1], {})}
    elif not wrappers:
        tree = {"weights": tree, **{name: value for name, value in beside.items() if name != "weights"}}
    path = write_tree(folder / "file.pth", tree)
    for item, wanted in (("auto", average if averaged else weights), ("model", weights), ("ema", average)):
        if item == "ema" and not averaged:
            with pytest.raises(UserError, match="holds no weights 'ema'"):
                files.open_weights(path, item)
            continue
        file = files.open_weights(path, item)
        assert file.tensors.keys() == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_array_equal(file.tensors[key].read(), value)
        assert len(wanted) + _accounted(file.left) == _tensors(tree), file.left


@pytest.mark.parametrize("number", [25, pytest.param(2000, marks=pytest.mark.slow)])
def test_weights_are_found_and_every_tensor_is_accounted_for(number):
    def once(arguments):
        with tempfile.TemporaryDirectory() as folder:
            _property(pathlib.Path(folder), *arguments)

    drawn = st.tuples(st.sampled_from(sorted(FORMATS)), PREFIX, WRAPPERS, BESIDE, AVERAGED)
    settings = hypothesis.settings(max_examples=number, derandomize=True, deadline=None, database=None)
    settings(hypothesis.given(drawn)(once))()
