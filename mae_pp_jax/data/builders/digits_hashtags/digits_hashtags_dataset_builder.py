"""TFDS builder of `digits_hashtags`: 1,797 scanned handwritten digits with labels and simulated noisy hashtags.

The images come with scikit-learn (`sklearn.datasets.load_digits`), so nothing is downloaded.
"""

import cv2
import numpy as np
import tensorflow_datasets as tfds

from mae_pp_jax.data import simulated_hashtags

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ATTRIBUTES = {
    "even": (0, 2, 4, 6, 8),
    "odd": (1, 3, 5, 7, 9),
    "small": (0, 1, 2, 3, 4),
    "large": (5, 6, 7, 8, 9),
    "prime": (2, 3, 5, 7),
    "square": (0, 1, 4, 9),
    "loop": (0, 6, 8, 9),
    "straight": (1, 4, 7),
}
SEED = 0
TEST_RECORDS = 360  # a fifth of 1,797
_NO_LABELS = np.zeros(0, np.int64)
_HASHTAG_NAMES = simulated_hashtags.simulate(_NO_LABELS, CLASS_NAMES, seed=SEED, attributes=ATTRIBUTES)[1]

_DESCRIPTION = """\
Handwritten digits, 8 × 8 pixels in 17 levels of grey (stored as 0 … 255), with simulated hashtags. The images are the
1,797 of the test part of the UCI "Optical Recognition of Handwritten Digits" set, as scikit-learn ships them. Split,
fixed and stratified by class: 1,437 train, 360 test.

The hashtags are drawn by a seeded process, not by people: 4% of the images are left without (and some more happen to
get none); of the others 15% are tagged as a wrong digit; the canonical tag of the digit named is left out in 25% and
each of its three synonyms present in 20%; each attribute of the true digit (even, odd, small, large, prime, square,
loop, straight) is present in 30%, and in 10% a wrong attribute is added; unrelated tags come on top, 0.8 an image, by
a Zipf law over 100. About three tags an image.
"""
_CITATION = """\
@misc{alpaydin1998digits,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
  note = {Creative Commons Attribution 4.0 International (CC BY 4.0)}
}
"""


class Builder(tfds.core.GeneratorBasedBuilder):
    """Writes the digits, labels and simulated hashtags as TFDS records."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
                    "hashtags": tfds.features.Sequence(tfds.features.ClassLabel(names=list(_HASHTAG_NAMES))),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=_CITATION,
            license="Creative Commons Attribution 4.0 International (CC BY 4.0)",
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        from sklearn.datasets import load_digits  # only needed here, and slow to import

        pixels, labels = load_digits(return_X_y=True)
        pixels = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        tags, _ = simulated_hashtags.simulate(labels, CLASS_NAMES, seed=SEED, attributes=ATTRIBUTES)
        test = stratified(labels, TEST_RECORDS, SEED)
        return {
            name: self._generate_examples(np.flatnonzero(chosen), pixels, labels, tags)
            for name, chosen in (("train", ~test), ("test", test))
        }

    def _generate_examples(self, records, pixels, labels, tags):
        for i in records.tolist():
            image = cv2.imencode(".png", pixels[i])[1].tobytes()
            yield i, {"image": image, "label": int(labels[i]), "hashtags": tags[i].tolist()}


def stratified(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Chooses `size` records with the classes in proportion, by largest remainder: bool [records]."""
    counts = np.bincount(labels)
    shares = counts * size / len(labels)
    quota = np.floor(shares).astype(int)
    quota[np.argsort(quota - shares, kind="stable")[: size - quota.sum()]] += 1
    rng = np.random.RandomState(seed)  # the legacy generator, for its stream is frozen for good
    chosen = np.zeros(len(labels), bool)
    for label, number in enumerate(quota):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:number]] = True
    return chosen
