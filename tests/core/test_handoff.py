import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.core import checkpoint, handoff
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten, unflatten
from mae_pp_jax.core.stage import InitFromConfig


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


SOURCE = {"encoder/kernel": leaf(2, 3), "encoder/pos_embed": leaf(5, 3), "decoder/kernel": leaf(3, 3)}
TARGET = {"encoder/kernel": leaf(2, 3), "encoder/pos_embed": leaf(10, 3), "head/kernel": leaf(3, 7)}
RULES = handoff.Handoff(
    stages=("mae",),
    move=((r"(encoder/.*)", r"\1"),),
    drop=(r"decoder/.*",),
    fresh=(r"head/.*",),
    resize=((r"encoder/pos_embed", lambda meta: (lambda table: np.resize(table, (10, 3)), f"rate {meta['rate']}")),),
)


def test_every_leaf_is_accounted_for_and_named():
    plan = handoff.plan(RULES, SOURCE, TARGET, "there", {"rate": 2})
    assert plan.moved == {"encoder/kernel": "encoder/kernel"}
    assert plan.resized == {"encoder/pos_embed": "encoder/pos_embed"}
    assert plan.dropped == ("decoder/kernel",) and plan.fresh == ("head/kernel",)
    text = handoff.report(plan, SOURCE, TARGET, "there")
    assert all(path in text for path in {*SOURCE, *TARGET})
    assert "encoder/pos_embed 5×3 → encoder/pos_embed 10×3 (rate 2)" in text


@pytest.mark.parametrize(
    "source, target, message",
    [
        ({**SOURCE, "extra/kernel": leaf(1)}, TARGET, "extra/kernel .* is neither moved nor dropped"),
        (SOURCE, {**TARGET, "encoder/new": leaf(1)}, "nothing arrives at encoder/new"),
        ({**SOURCE, "encoder/kernel": leaf(4, 3)}, TARGET, r"encoder/kernel is \(4, 3\) there and .* \(2, 3\) here"),
    ],
)
def test_refusals(source, target, message):
    with pytest.raises(UserError, match=message):
        handoff.plan(RULES, source, target, "there", {"rate": 2})


def test_two_sources_for_one_target_are_refused():
    rules = handoff.Handoff(stages=("mae",), move=((r".*/(kernel)", r"\1"),))
    with pytest.raises(UserError, match="both a/kernel and b/kernel would become kernel"):
        handoff.plan(rules, {"a/kernel": leaf(1), "b/kernel": leaf(1)}, {"kernel": leaf(1)}, "there", {})


@dataclasses.dataclass(frozen=True)
class TwoSources:
    image: InitFromConfig = config_lib.section(InitFromConfig)
    text: InitFromConfig = config_lib.section(InitFromConfig)


ENCODER = dict(stages=("mae",), drop=(r"decoder/.*",))
PARTS = {
    "image": handoff.Handoff(move=((r"encoder/(.*)", r"image/\1"),), scope=r"image/.*", **ENCODER),
    "text": handoff.Handoff(move=((r"encoder/(.*)", r"text/\1"),), scope=r"text/.*", **ENCODER),
}


def towers(run):
    """Two zeroed copies of the run's encoder, and a scale that comes from nowhere."""
    saved = checkpoint.weights(run, checkpoint.find(run))
    leaves = {path.removeprefix("encoder/"): jnp.zeros(s.shape) for path, s in saved.items() if path[0] == "e"}
    return unflatten(
        {"scale": jnp.ones(()), **{f"{t}/{p}": leaf for t in ("image", "text") for p, leaf in leaves.items()}}
    )


def test_two_parts_come_from_two_runs_and_both_are_accounted_for(mae_run):
    init_from = config_lib.resolve(TwoSources, {"image": {"run": str(mae_run)}, "text": {"run": str(mae_run)}})
    params, records, account, _ = handoff.transfer(PARTS, init_from, towers(mae_run))
    flat = flatten(params)
    for path, leaf in flat.items():
        if path.startswith("image/"):
            np.testing.assert_array_equal(leaf, flat[path.replace("image/", "text/", 1)], err_msg=path)
    assert np.any(flat["image/patch_embed/kernel"]) and float(flat["scale"]) == 1
    assert set(records) == {"image", "text"} and all(path in account for path in flat)


def test_a_part_without_a_run_stays_fresh(mae_run):
    init_from = config_lib.resolve(TwoSources, {"image": {"run": str(mae_run)}})
    params, records, account, _ = handoff.transfer(PARTS, init_from, towers(mae_run))
    assert np.any(params["image"]["patch_embed"]["kernel"]) and not np.any(params["text"]["patch_embed"]["kernel"])
    assert set(records) == {"image"} and "fresh    text/patch_embed/kernel" in account


def test_errors_name_the_part(mae_run, tmp_path):
    init_from = config_lib.resolve(TwoSources, {"text": {"run": str(tmp_path)}})
    with pytest.raises(UserError, match="config.init_from.text: .* holds no checkpoint"):
        handoff.transfer(PARTS, init_from, towers(mae_run))
