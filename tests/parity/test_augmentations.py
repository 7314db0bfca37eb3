"""Augmentations against timm's on the same draws."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [torch]: run make parity")

from mae_pp_jax.data import augment, randaugment
from mae_pp_jax.ops import losses
from tests.parity import augmentations, references
from tests.stages.conftest import stage_of

POLICIES = ("rand-m9-mstd0.5-inc1", "rand-m7-n3-p0.8-mstd101", "rand-m12-mmax14-mstd1-inc1")


@pytest.fixture(autouse=True, scope="module")
def importable():
    references.define_torchvision_operators()


@pytest.mark.parametrize("size", [(224, 224), (37, 53)])
def test_operations(size):
    for case in augmentations.cases(levels=(0.0, 3.3, 6.5, 9.0, 10.0)):
        for seed in (1, 2):
            image = augmentations.picture(*size, seed)
            apart = np.abs(augmentations.ours(image, *case).astype(int) - augmentations.timm_operation(image, *case))
            most, mean = augmentations.limit(case[0], case[-1])
            assert apart.max() <= most and apart.mean() <= mean, (case, apart.max(), apart.mean())


@pytest.mark.parametrize("text", POLICIES)
def test_policies(text):
    """The same operations, magnitudes, signs and interpolation from the same numbers."""
    policy, changed = randaugment.parse(text), 0
    for seed, draws in enumerate(np.random.default_rng(0).random((60, policy.draws))):
        image = augmentations.picture(40, 56, seed)
        out = policy(image, draws, augmentations.FILL)
        expected = augmentations.timm_policy(text, image, draws)
        # A table of levels after an interpolation may spread a difference of one level.
        assert np.abs(out.astype(int) - expected).mean() <= 3.0, (text, seed)
        changed += not np.array_equal(expected, image)
    assert changed > 30


def test_the_stored_cases_are_what_the_generator_makes():
    stored = np.load(augmentations.STORED)
    assert len(stored.files) == 1 + len(list(augmentations.cases()))
    for case in augmentations.cases():
        made = augmentations.timm_operation(stored["image"], *case)
        np.testing.assert_array_equal(made, stored["/".join(map(str, case))], err_msg=str(case))


class _Given:
    """Stands for the module `random` in timm's RandomErasing."""

    def __init__(self, draws):
        self._tries, self._whether, self._place = iter(draws[1:-2]), draws[0], iter(draws[-2:])

    def random(self):
        return self._whether

    def uniform(self, low, high):
        return low + (high - low) * next(self._tries)

    def randint(self, low, high):
        return low + int(next(self._place) * (high - low + 1))


@pytest.mark.parametrize("size", [(224, 224), (24, 60), (32, 32)])
def test_erased_rectangles(size):
    from timm.data import random_erasing

    draws = np.random.default_rng(0).random((200, augment.ERASE_DRAWS)).astype(np.float32)
    boxes = np.asarray(augment.erased_boxes(jnp.asarray(draws), size, 0.5))
    for box, numbers in zip(boxes, draws.astype(np.float64)):
        image = torch.zeros(3, *size)
        with (
            mock.patch.object(random_erasing, "random", _Given(numbers)),
            mock.patch.object(random_erasing, "_get_pixels", lambda *_, **__: torch.ones(1)),
        ):
            random_erasing.RandomErasing(0.5, mode="pixel", device="cpu")(image)
        expected = np.zeros(size)
        expected[box[0] : box[1], box[2] : box[3]] = 1
        np.testing.assert_array_equal(image[0].numpy(), expected)


@pytest.mark.parametrize("share", [0.03, 0.4, 0.75, 0.999])
def test_cut_boxes(share):
    from timm.data import mixup

    for draws in np.random.default_rng(0).random((50, 2)).astype(np.float32):
        numbers = iter(draws)
        with mock.patch.object(mixup.np.random, "randint", lambda low, high, size: int(next(numbers) * high)):
            box, _ = mixup.cutmix_bbox_and_lam((2, 3, 30, 44), share)
        np.testing.assert_array_equal(augment.cut_box(jnp.float32(share), jnp.asarray(draws), (30, 44)), box)


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_batches_and_targets(alphas):
    """Ours draws; timm is given the share and the rectangle, and mixes images and labels."""
    from timm.data import mixup

    stage = stage_of("classify", mixup=str(alphas[0]), cutmix=str(alphas[1]), label_smoothing="0.1")
    plain, batch = stage_of("classify"), next(stage.train_batches(0))
    kinds = set()
    for seed in range(6):
        keys = jax.random.split(jax.random.key(seed), 32)
        mixed = stage.augment(batch, keys)
        images = np.asarray(plain.pixels(batch, keys)).transpose(0, 3, 1, 2)
        settings = dict(mixup=alphas[0], cutmix=alphas[1], probability=1.0, switch=0.5)
        with mock.patch.object(augment.jax.random, "beta", wraps=jax.random.beta) as beta:
            share, own = augment.mix_weights(augment.rng.stream(keys[:1], "mix")[0], (8, 8), **settings)
            share_before = float(jax.random.beta(*beta.call_args.args))
        own = np.asarray(own)
        cuts = own.ndim == 3 and set(np.unique(own)) <= {0.0, 1.0}
        kinds.add(cuts)
        rows, columns = (np.flatnonzero((own[..., 0] == 0).any(axis)) for axis in (1, 0)) if cuts else ([], [])
        box = (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) if len(rows) else (0, 0, 0, 0)
        transform = mixup.Mixup(*alphas, label_smoothing=0.1, num_classes=10)
        with (
            mock.patch.object(transform, "_params_per_batch", lambda: (share_before, cuts)),
            mock.patch.object(mixup, "rand_bbox", lambda *_, **__: box),
        ):
            expected, targets = transform(torch.tensor(images), torch.tensor(batch["label"]))
        np.testing.assert_allclose(mixed["image"], expected.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
        one, other = (losses.smooth_labels(mixed[name], 10, 0.1) for name in ("label", "partner"))
        made = mixed["share"][:, None] * one + (1 - mixed["share"][:, None]) * other
        np.testing.assert_allclose(made, targets.numpy(), atol=1e-6)
    assert kinds == ({True, False} if all(alphas) else {alphas[1] > 0})
