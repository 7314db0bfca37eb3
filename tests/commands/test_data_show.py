"""`data show`: the picture shows what the training of that config and seed sees."""

import cv2
import jax
import numpy as np
import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands import data_show
from mae_pp_jax.core import state
from tests.conftest import RECIPES, arguments
from tests.stages.conftest import recipe, stage_of

MIXED = {"mixup": "0.8", "data.randaugment": "rand-m9-mstd0.5-inc1"}


def batch_of(stage, step):
    """The whole batch of a step as training gets it, and the keys of its examples."""
    keys = jax.random.split(state.key_of_step(jax.random.key(stage.config.seed), step), stage.config.global_batch)
    return next(stage.train_batches(step)), keys


def test_a_sheet_of_mixed_images_is_written(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    given = arguments({**RECIPES["classify"], **MIXED})
    assert main(["data", "show", f"--config={recipe('classify')}", *given, f"--out={out}"]) == 0
    assert "64 training images of 8×8 pixels" in capsys.readouterr().out
    stage = stage_of("classify", **{key.replace(".", "__"): value for key, value in MIXED.items()})
    picture = cv2.cvtColor(cv2.imread(str(out)), cv2.COLOR_BGR2RGB)
    down = (picture.shape[0] - 6) // 8
    for step in range(2):  # a row of the sheet: the first four images of a step and its last four
        batch, keys = batch_of(stage, step)
        trained = np.asarray(stage.uint8(stage.augment(batch, keys)["image"]))[[0, 1, 2, 3, 28, 29, 30, 31]]
        top = 6 + step * down
        row = picture[top : top + 112 : 14, 6:].reshape(8, 8, 118, 3)[:, :, :112:14].swapaxes(0, 1)
        np.testing.assert_array_equal(row, trained)


def test_captions_say_of_which_classes_images_are_mixed():
    stage = stage_of("classify", mixup="0.8")
    _, captions = data_show.first_images(stage, 8, 8)
    batch, keys = batch_of(stage, 0)
    share, names = float(stage.augment(batch, keys)["share"][0]), stage.names["label"]
    expected = f"{share:.0%} {names[batch['label'][0]]}, {1 - share:.0%} {names[batch['label'][31]]}"
    assert captions[0] == expected and len(captions) == 8


def test_masked_images_stand_beside_the_whole_ones():
    stage = stage_of("mae", mae__mask_ratio="0.5")
    pictures, captions = data_show.first_images(stage, 8, 8)
    whole, visible = pictures["whole"], pictures["visible"]
    batch, keys = batch_of(stage, 0)
    np.testing.assert_array_equal(whole[:4], stage.uint8(stage.pixels(batch, keys))[:4])
    seen = (whole == visible).reshape(8, 2, 4, 2, 4, 3).all((2, 4, 5))  # patches of 4 pixels
    assert (seen.sum((1, 2)) == 2).all() and captions == []
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(stage.init, jax.random.key(0)))
    mask = jax.jit(lambda pixels: stage.model.apply(params, pixels, keys)["mask"])(stage.pixels(batch, keys))
    np.testing.assert_array_equal(seen[:4], mask.reshape(-1, 2, 2)[:4] == 0)


@pytest.mark.parametrize("name, caption", [("wsp", "#two #even #junk5 #junk7 #junk10"), ("low_shot", "zero")])
def test_other_stages_show_their_images_with_what_is_known_of_them(name, caption):
    pictures, captions = data_show.first_images(stage_of(name), 16, 8)
    assert pictures["as trained"].shape == (16, 8, 8, 3) and len(captions) == 16
    assert caption in captions


def test_what_cannot_be_shown_is_one_line(tmp_path, capsys):
    for given, message in [
        (["--out=sheet.jpg"], "--out: sheet.jpg must end in .png"),
        (["--config.mixpu=0.8"], "did you mean"),
        (["--config.data.name=/nowhere"], "data.name: no folder /nowhere"),
        ([f"--out={tmp_path}/a/b.png", "--config.data.randaugment=randm9"], "a policy begins with 'rand'"),
    ]:
        assert main(["data", "show", f"--config={recipe('classify')}", *given]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert message in error[-1]
    assert not list(tmp_path.iterdir())


def test_long_captions_are_cut():
    def fits(text):
        return len(text) <= 10

    assert data_show._wrapped("one two three four five", fits) == ["one two", "three fou…"]
    assert data_show._wrapped("abcdefghijklmnop", fits) == ["abcdefghi…"]
    assert data_show._wrapped("", fits) == []
