"""Selection of visible patches, and its inverse."""

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.models import masking

select_visible = jax.jit(masking.select_visible, static_argnums=1)


def test_selection_equals_a_stable_sort():
    noise = np.round(np.random.default_rng(0).uniform(size=(6, 20)), 1).astype(np.float32)  # rounded: many ties
    select, mask = select_visible(jnp.asarray(noise), 5)
    order = np.argsort(noise, axis=1, kind="stable")
    np.testing.assert_array_equal(np.argmax(select, axis=2), order[:, :5])
    np.testing.assert_array_equal(np.sum(select, axis=2), 1)
    for row in range(6):
        assert set(np.flatnonzero(mask[row])) == set(order[row, 5:])


def test_visible_and_masked_patches_are_a_permutation():
    select, mask = select_visible(np.random.default_rng(0).uniform(size=(8, 49)), 12)
    for chosen, masked in zip(np.argmax(select, axis=2), np.asarray(mask), strict=True):
        assert sorted([*chosen, *np.flatnonzero(masked)]) == list(range(49))


def test_gather_then_restore_copies_exactly():
    rng = np.random.default_rng(1)
    select, mask = select_visible(rng.uniform(size=(3, 16)), 4)
    patches, mask_token = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 16, 5), (1, 5)))
    visible = jax.jit(masking.gather_visible)(select, patches)
    for row, chosen in enumerate(np.argmax(select, axis=2)):
        np.testing.assert_array_equal(visible[row], patches[row, chosen])
    restored = jax.jit(masking.restore_patches)(select, visible, mask, mask_token)
    np.testing.assert_array_equal(restored, np.where(mask[:, :, None] == 1, mask_token, patches))
