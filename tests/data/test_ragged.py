"""Values of different numbers in arrays of a fixed shape."""

import numpy as np

from mae_pp_jax.data import ragged


def test_values_are_padded_and_counted_when_cut():
    def choose(values):
        return np.argsort(-values)

    for values, expected in (([4, 7], ([4, 7, -1], 0)), ([5, 1, 9, 7, 2], ([5, 9, 7], 2)), ([], ([-1, -1, -1], 0))):
        out, cut = ragged.pad(np.array(values, np.int32), 3, choose)
        assert (out.tolist(), cut) == expected and out.dtype == np.int32


def test_values_may_be_arrays():
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    out, cut = ragged.pad(boxes, 2, lambda values: np.array([2, 0, 1]), fill=0)
    np.testing.assert_array_equal(out, boxes[[0, 2]])
    assert cut == 1 and ragged.pad(boxes[:1], 2, None, fill=0)[0].tolist() == [[0, 1, 2, 3], [0] * 4]
