"""Published figures that stand beside a suite's own where the dataset is the same; every one says how it was measured.

Sources: README.md of facebookresearch/maws and of facebookresearch/mae, and the tables of Singh et al. 2023 (ICCV).
"""

from collections.abc import Iterable, Mapping

_MAE = "LARS, 90 epochs with augmentation; here a grid of SGD on features without augmentation"
_MAWS = "its protocol is not published"
_SHOTS = "the authors' own five splits, VPT adapters; here a linear classifier on frozen features"

# Size → (model, task → (top-1 in percent, how it was measured)), all on ImageNet-1k at 224 pixels.
_IMAGENET = {
    "B/16": [("MAWS", {"linear": (83.3, _MAWS)}), ("MAE on ImageNet-1k", {"linear": (67.8, _MAE)})],
    "L/16": [("MAWS", {"linear": (86.1, _MAWS)}), ("MAE on ImageNet-1k", {"linear": (76.0, _MAE)})],
    "H/14": [
        ("MAWS", {"linear": (87.5, _MAWS), "5-shot": (79.8, _SHOTS), "10-shot": (82.5, _SHOTS)}),
        ("MAE on ImageNet-1k", {"linear": (77.2, _MAE)}),
    ],
    "2B/14": [
        (
            "MAWS",
            {"linear": (88.1, _MAWS), "1-shot": (62.1, _SHOTS), "5-shot": (81.5, _SHOTS), "10-shot": (83.7, _SHOTS)},
        )
    ],
    "6.5B/14": [("MAWS", {"linear": (88.6, _MAWS), "1-shot": (63.6, _SHOTS)})],
}
_VALIDATION = 50_000  # images of ImageNet's validation set


def beside(results: Iterable[Mapping]) -> list[dict]:
    """Published rows for the models of the results of `image.judge`, where they are of ImageNet's validation set.

    Returns:
      A list of `name` and `figures`: task → (top-1 in percent, how it was measured).
    """
    sizes = {}
    for result in results:
        test = result["dataset"].get("test", {})
        whole = test.get("images", 0) + test.get("unreadable", 0) == _VALIDATION
        if whole and result["dataset"]["classes"] == 1000 and test["name"].startswith("imagenet2012"):
            sizes[result["model"]] = True
    return [
        dict(name=f"{model} ViT-{size}, published", figures=figures)
        for size in sizes
        for model, figures in _IMAGENET.get(size, ())
    ]
