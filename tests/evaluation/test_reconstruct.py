"""The picture of reconstructions."""

import numpy as np

from mae_pp_jax.evaluation import reconstruct


def test_images_of_any_shape_stand_in_rows_on_white():
    rows = [np.full((3, 16, 40, 3), 10 * row, np.uint8) for row in range(2)]
    picture = reconstruct.grid(rows)
    # Enlarged 4 times, so that the shorter side has 64 pixels, with 4 pixels between and around.
    assert picture.shape == (2 * (64 + 4) + 4, 3 * (160 + 4) + 4, 3)
    for row in range(2):
        for column in range(3):
            top, left = 4 + 68 * row, 4 + 164 * column
            assert np.all(picture[top : top + 64, left : left + 160] == 10 * row)
    assert np.count_nonzero(np.all(picture == 255, axis=-1)) == picture[:, :, 0].size - 6 * 64 * 160
