import jax
import numpy as np
import pytest

from mae_pp_jax.core import handoff
from mae_pp_jax.core.errors import UserError


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


SOURCE = {"encoder/kernel": leaf(2, 3), "encoder/pos_embed": leaf(5, 3), "decoder/kernel": leaf(3, 3)}
TARGET = {"encoder/kernel": leaf(2, 3), "encoder/pos_embed": leaf(10, 3), "head/kernel": leaf(3, 7)}
RULES = handoff.Handoff(
    stages=("mae",),
    move=((r"(encoder/.*)", r"\1"),),
    drop=(r"decoder/.*",),
    fresh=(r"head/.*",),
    resize=((r"encoder/pos_embed", lambda config: (lambda table: np.resize(table, (10, 3)), f"rate {config['rate']}")),),
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
