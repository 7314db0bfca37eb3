"""What stages say of new images: the softmax of their logits under the names of the checkpoint."""

import cv2
import jax
import numpy as np
import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data.decode import Unreadable
from tests.stages.conftest import stage_of

FIELDS = {"classify": "label", "linear": "label", "low_shot": "label", "wsp": "hashtags"}


@pytest.mark.parametrize("name, field", FIELDS.items())
def test_the_most_probable_ones_by_name(name, field):
    stage = stage_of(name)
    count = stage.vocabulary if name == "wsp" else stage.classes
    names = [f"no. {i}" for i in range(count)]
    answers = stage.answers({field: names}, 3)
    assert answers.columns == ("hashtag" if name == "wsp" else "class", "probability")
    params = stage.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    images = [
        cv2.imencode(".png", pixels)[1].tobytes() for pixels in np.random.default_rng(0).integers(0, 256, (4, 9, 8, 3))
    ]
    batch = {"image": np.stack([answers.load(image)["image"] for image in images])}
    assert batch["image"].shape == (4, 8, 8, 3) and batch["image"].dtype == np.uint8
    both = jax.jit(lambda params, batch: (stage.logits(params, batch), answers.compute(params, batch)))
    logits, values = jax.tree.map(np.asarray, both(params, batch))
    odds = np.exp(logits.astype(np.float64))
    wanted = odds / odds.sum(-1, keepdims=True)
    wanted = wanted.mean(1) if name == "low_shot" else wanted  # over splits
    for at, own in enumerate(wanted):
        told = answers.tell(jax.tree.map(lambda array, at=at: array[at], values))
        best = np.argsort(-own)[:3]
        assert [name for name, _ in told] == [names[i] for i in best]
        np.testing.assert_allclose([share for _, share in told], own[best], rtol=1e-4)
    with pytest.raises(Unreadable):
        answers.load(b"no picture")


def test_a_stage_without_classes_says_what_has_some():
    with pytest.raises(
        UserError, match="--workdir: a run of stage 'mae' knows no classes; train one that does from it"
    ):
        stage_of("mae").answers({}, 5)
