"""Search for the most similar features against a sort of all."""

import numpy as np
import pytest

from mae_pp_jax.evaluation import nearest

NAN = float("nan")


def by_sort(base, queries, k):
    base, queries = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (base, queries)
    )
    similar = queries @ base.T
    found = np.argsort(-similar, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similar, found, 1), found


def test_features_on_disk_in_many_blocks(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "base.npy", rng.normal(size=(203, 8)).astype(np.float16) * 30)
    base, queries = np.load(tmp_path / "base.npy", mmap_mode="r"), rng.normal(size=(37, 8)).astype(np.float32)
    expected = by_sort(base, queries, 12)
    for sizes in ((16384, 1024), (64, 16)):
        monkeypatch.setattr(nearest, "BASE_BLOCK", sizes[0])
        monkeypatch.setattr(nearest, "QUERY_BLOCK", sizes[1])
        similar, found = nearest.top_k(base, queries, 12)
        np.testing.assert_array_equal(found, expected[1])
        np.testing.assert_allclose(similar, expected[0], atol=1e-6)


def test_of_equal_ones_the_earlier_counts_also_across_blocks(monkeypatch):
    """Rows of ±1 in four places have cosines of 0, ±½ and ±1, without rounding."""
    rng = np.random.default_rng(1)
    base, queries = (rng.choice([-1.0, 1.0], (count, 4)) for count in (90, 11))
    monkeypatch.setattr(nearest, "BASE_BLOCK", 16)
    similar, found = nearest.top_k(base, queries, 40)
    expected = by_sort(base, queries, 40)
    np.testing.assert_array_equal(similar, expected[0])
    np.testing.assert_array_equal(found, expected[1])
    assert len(np.unique(similar)) < 6


def test_copies_of_a_feature_are_equal_wherever_they_stand():
    one = np.random.default_rng(2).normal(size=(1, 64)).astype(np.float32)
    similar, found = nearest.top_k(np.repeat(one, 77, 0), np.repeat(one, 5, 0), 77)
    assert found.tolist() == [list(range(77))] * 5 and len(np.unique(similar)) == 1


def test_what_is_not_finite_is_not_found_and_finds_nothing(monkeypatch):
    monkeypatch.setattr(nearest, "BASE_BLOCK", 8)
    base, queries = np.eye(10, 4, dtype=np.float32), np.eye(3, 4, dtype=np.float32)
    base[[0, 5], [1, 3]], queries[1, 0] = NAN, np.inf
    similar, found = nearest.top_k(base, queries, 10)
    assert found[0].tolist() == [1, 2, 3, 4, 6, 7, 8, 9, -1, -1] and similar[0, -1] == -np.inf
    assert set(found[1]) == {-1} and np.isnan(similar[1]).all()
    assert found[2, :2].tolist() == [2, 1] and similar[2, 0] == 1


def test_sizes_that_do_not_fit_are_refused():
    assert nearest.top_k(np.ones((3, 2)), np.ones((0, 2)), 2)[1].shape == (0, 2)
    for k, width in ((4, 2), (1, 3)):
        with pytest.raises(ValueError, match="nearest of"):
            nearest.top_k(np.ones((3, 2)), np.ones((1, width)), k)
