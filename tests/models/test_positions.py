"""Position tables against their definition and against numbers from PyTorch."""

import math

import numpy as np
import pytest

from mae_pp_jax.models import positions


def test_sincos_is_its_definition():
    width, rows, columns = 12, 3, 5
    table = positions.sincos_2d(width, rows, columns, cls=True)
    assert table.shape == (1 + rows * columns, width) and table.dtype == np.float32
    assert not np.any(table[0])
    quarter = width // 4
    for row in range(rows):
        for column in range(columns):
            for k in range(quarter):
                omega = 10000 ** (-k / quarter)
                expected = [
                    math.sin(column * omega),
                    math.cos(column * omega),
                    math.sin(row * omega),
                    math.cos(row * omega),
                ]
                np.testing.assert_allclose(table[1 + row * columns + column, k::quarter], expected, atol=1e-6)


def test_sincos_without_class_token():
    np.testing.assert_array_equal(positions.sincos_2d(8, 2, 3, cls=False), positions.sincos_2d(8, 2, 3, cls=True)[1:])


def test_resize_equals_torch():
    """Numbers of PyTorch 2.13 in float64: `torch.nn.functional.interpolate` of the table as [1, 1, 4, 4] to (3, 5)
    with mode="bicubic" and align_corners=False."""
    table = np.sin(1.7 * np.arange(16))[:, None]
    expected = [
        [0.009516722, 0.859793501, 0.466950441, -0.616951429, -0.924735153],
        [0.714812356, 0.815186500, -0.173954015, -0.905652960, -0.373864138],
        [1.048460819, 0.346745531, -0.724415830, -0.723484957, 0.371387331],
    ]
    np.testing.assert_allclose(positions.resize(table, (3, 5), has_cls=False)[:, 0], np.ravel(expected), atol=1e-8)


def test_resize_copies_the_class_token_and_keeps_the_dtype():
    table = positions.sincos_2d(16, 4, 4, cls=True) + np.float32(0.5)
    resized = positions.resize(table, (7, 6), has_cls=True)
    assert resized.shape == (43, 16) and resized.dtype == np.float32
    np.testing.assert_array_equal(resized[0], table[0])
    np.testing.assert_array_equal(positions.resize(table, (4, 4), has_cls=True), table)


def test_resize_of_an_oblong_grid_works_along_each_axis():
    ramp = np.stack(np.meshgrid(np.arange(4.0), np.arange(6.0), indexing="ij"), -1).reshape(24, 2)
    resized = positions.resize(ramp, (4, 12), has_cls=False, old_grid=(4, 6)).reshape(4, 12, 2)
    np.testing.assert_allclose(resized[..., 0], np.arange(4.0)[:, None] * np.ones(12), atol=1e-12)
    # Away from the border the cubic kernel reproduces a straight line.
    np.testing.assert_allclose(resized[0, 3:9, 1], (np.arange(3, 9) + 0.5) / 2 - 0.5, atol=0.05)


def test_resize_refuses_patches_that_form_no_grid():
    with pytest.raises(ValueError, match="17 patches is no grid of 4 × 4"):
        positions.resize(np.zeros((17, 4)), (2, 2), has_cls=False)
