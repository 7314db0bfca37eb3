"""Where records come from: TFDS datasets and folders of images, and what is made of them before they are read."""

import dataclasses
import difflib
import hashlib
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from mae_pp_jax.core.config import key
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import (
    caching,
    fields,
    folder,
    mixture,
    orders,
    randaugment,
    resampling,
    simulated_hashtags,
    tfds_store,
)
from mae_pp_jax.data.fields import Source, Wrapper
from mae_pp_jax.data.vocabulary import Vocabulary

_SIMULATION_SEED = 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how it is turned into training and evaluation images."""

    name: str = key(
        "digits_hashtags",
        "TFDS name (cifar10, imagenet2012:5.*.*, …), prepared TFDS folder, folder ROOT/CLASS/, or A=0.7,B=0.3 of them",
        by_content=True,
    )
    data_dir: str = key("", "where TFDS keeps its datasets; empty: TFDS's default", restart=True)
    train_split: str = key("train", "split to train on, in TFDS's syntax (train[:90%])")
    eval_fraction: float = key(0.2, "share of each class held out, for a folder without splits", low=0.0, high=1.0)
    image_size: int | tuple[int, ...] = key(224, "side of square images in pixels, or HEIGHT,WIDTH", low=1)
    crop: str = key(
        "random_resized",
        "how training images are cropped; random_resized draws a part up to ten times until it fits, random_resized_once "
        "cuts the first one down, as MAE's linear probe; none: as the images of the first evaluation set",
        choices=("random_resized", "random_resized_once", "shift", "none"),
    )
    crop_scale: tuple[float, ...] = key((0.2, 1.0), "random_resized: smallest and largest share of the image's area")
    crop_ratio: tuple[float, ...] = key((3 / 4, 4 / 3), "random_resized: smallest and largest width / height")
    shift: int = key(1, "shift: largest move in pixels, zeros come in", low=0)
    flip: bool = key(True, "mirror half of the training images, on the device")
    randaugment: str = key("", "policy by which training images are changed, as timm writes it: rand-m9-mstd0.5-inc1")
    mean: tuple[float, ...] = key((0.485, 0.456, 0.406), "mean of each channel, taken off on the device")
    std: tuple[float, ...] = key((0.229, 0.224, 0.225), "standard deviation of each channel, divided by on the device")
    hashtags: str = key("field", "the dataset's own, or simulated from its labels", choices=("field", "simulated"))
    vocabulary: str = key(
        "", "file of `data hashtags` that maps the dataset's hashtags to classes; empty: none", by_content=True
    )
    untagged: str = key(
        "keep",
        "images without a hashtag of the vocabulary: keep (no part in the WSP loss, counted) or skip (never read)",
        choices=("keep", "skip"),
    )
    max_tags: int = key(
        16,
        "hashtags kept per image, which fixes the shape of a batch; of more, the rarest where data.resample counts "
        "them, else drawn anew each time",
        low=1,
    )
    resample: str = key("none", "show images with rare hashtags more often", choices=("none", "sqrt", "swag"))
    resample_t: float = key(0.001, "sqrt: share of images under which a hashtag is rare", low=0.0, high=1.0)
    resample_length: float = key(1.0, "swag: length of a pass, as a multiple of the dataset's images", low=0.0)
    cache_dir: str = key("", "where what is computed from a dataset is kept; empty: the user's cache", restart=True)
    cache: str = key(
        "none",
        "for small sets, decode once and keep the pixels in memory, or on a local disk (cache_dir) for later runs too",
        choices=("none", "ram", "disk"),
        restart=True,
    )
    threads: int | None = key(
        None,
        "threads that read, decode and crop; none: cores + 1, at most 8; 1 is best for tiny images in ram",
        low=0,
        restart=True,
    )
    max_unreadable: float = key(0.1, "share of unreadable images above which the run stops", low=0.0, high=1.0)
    prefetch: int = key(2, "batches prepared ahead", low=1, restart=True)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        return (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)

    def __post_init__(self):
        lengths = dict(crop_scale=2, crop_ratio=2, mean=3, std=3)
        if not isinstance(self.image_size, int):
            lengths["image_size"] = 2
        for name, length in lengths.items():
            if len(getattr(self, name)) != length:
                raise UserError(f"data.{name}: must be {length} numbers, got {getattr(self, name)}")
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(f"data.{name}: must be two rising numbers above 0, got {getattr(self, name)}")
        if self.randaugment:
            randaugment.parse(self.randaugment)


def open_source(config: DataConfig, split: str) -> Source:
    """Opens one split of the dataset `config.name`; prepares it first if TFDS can and has not yet.

    Raises:
      UserError: no such dataset, folder or split; a folder of the wrong make; a dataset without images; no network.
    """
    if not pathlib.Path(config.name).expanduser().exists() and (parts := mixture.parse(config.name)):
        sources = [open_source(dataclasses.replace(config, name=name), split) for name in parts]
        return mixture.Mixture(sources, list(parts.values()))
    path = pathlib.Path(config.name).expanduser()
    if tfds_store.prepared_folder(config.name):
        source = tfds_store.TfdsSource(config.name, config.data_dir, split, config.cache_dir)
    elif "://" in config.name:
        raise UserError(f"data.name: no prepared dataset (dataset_info.json) at {config.name}, or it cannot be reached")
    elif path.is_dir():
        if re.fullmatch(r"\w+", config.name) and tfds_store.is_stored(config.name, config.data_dir):
            raise UserError(
                f"data.name: '{config.name}' is a folder here and a dataset of TFDS; "
                f"write ./{config.name} for the folder, {config.name}:*.*.* for the dataset"
            )
        source = folder.FolderSource(path, split, config.train_split, config.eval_fraction)
    elif config.name.startswith(("/", ".", "~")):
        near = difflib.get_close_matches(path.name, _folders(path.parent), n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else f" in {_nearest_parent(path)}"
        raise UserError(f"data.name: no folder {path}{hint}")
    else:
        source = tfds_store.TfdsSource(config.name, config.data_dir, split, config.cache_dir)
    if config.cache == "disk":
        source = caching.OnDisk(source, config.cache_dir)
    if config.hashtags == "simulated":
        source = SimulatedHashtags(source)
    if config.vocabulary:
        source = InVocabulary(source, Vocabulary.load(config.vocabulary))
    if config.untagged == "skip":
        source = Subset(source, tagged_indices(source))
    return caching.InMemory(source) if config.cache == "ram" else source


def training_order(source: Source, config: DataConfig, seed: int) -> orders.Order:
    """Which record stands at each position of the training stream, resampled and mixed as configured."""
    if isinstance(source, mixture.Mixture):
        parts = [_order(part, config, seed, stream) for stream, part in enumerate(source.parts)]
        return orders.Mixed(parts, [len(part) for part in source.parts], source.weights, seed)
    return _order(source, config, seed, 0)


def tag_counts(source: Source, config: DataConfig) -> np.ndarray | None:
    """The records that carry each hashtag, int64 [hashtags], where resampling has counted them."""
    if config.resample == "none":
        return None
    parts = source.parts if isinstance(source, mixture.Mixture) else [source]
    return sum(resampling.tag_statistics(part, config.cache_dir).counts for part in parts)


def _order(source: Source, config: DataConfig, seed: int, stream: int) -> orders.Order:
    if config.resample == "none":
        return orders.Shuffled(len(source), seed, stream)
    return resampling.resampled(
        source, config.resample, config.resample_t, config.resample_length, seed, config.cache_dir, stream
    )


class Subset(Wrapper):
    """The chosen records of another source, in the order of `indices` (int [records])."""

    def __init__(self, source: Source, indices: np.ndarray):
        self._indices = np.asarray(indices, np.int64)
        super().__init__(source, fingerprint=digest(source.fingerprint, self._indices.tobytes()))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:
        return self._source[int(self._indices[index])]

    def column(self, name: str) -> Iterator:
        found = list(self._source.column(name))
        return (found[i] for i in self._indices)

    def describe(self, index: int) -> str:
        return self._source.describe(int(self._indices[index]))


class SimulatedHashtags(Wrapper):
    """A labelled source with hashtags drawn by `simulated_hashtags.simulate` in place of any of its own."""

    def __init__(self, source: Source):
        classes = fields.names(source, "label")
        if not classes:
            raise UserError("data.hashtags: 'simulated' needs a dataset with labels, and this one has none")
        self._tags, names = simulated_hashtags.simulate(fields.labels(source), classes, seed=_SIMULATION_SEED)
        fingerprint = digest(source.fingerprint, *(tags.tobytes() for tags in self._tags))
        super().__init__(source, {"hashtags": fields.Ids(names)}, fingerprint)

    def __getitem__(self, index: int) -> dict:
        return self._source[index] | {"hashtags": self._tags[index]}

    def column(self, name: str) -> Iterator:
        return iter(self._tags) if name == "hashtags" else super().column(name)


class InVocabulary(Wrapper):
    """A source with its hashtags mapped to the classes of a vocabulary; the others are dropped."""

    def __init__(self, source: Source, vocabulary: Vocabulary):
        if "hashtags" not in source.fields:
            raise UserError(
                "data.vocabulary: the dataset has no hashtags; leave it empty or use a dataset with hashtags"
            )
        self._vocabulary, self._names = vocabulary, fields.names(source, "hashtags")
        fingerprint = digest(source.fingerprint, vocabulary.fingerprint)
        super().__init__(source, {"hashtags": fields.Ids(vocabulary.names)}, fingerprint)

    def __getitem__(self, index: int) -> dict:
        record = self._source[index]
        return record | {"hashtags": self._vocabulary.ids(_as_texts(record["hashtags"], self._names))}

    def column(self, name: str) -> Iterator:
        return map(self._vocabulary.ids, texts(self._source)) if name == "hashtags" else super().column(name)


def texts(source: Source) -> Iterator[tuple[str, ...]]:
    """The hashtags of all records as text, in order, without decoding an image.

    Raises:
      UserError: the source has no hashtags.
    """
    if "hashtags" not in source.fields:
        raise UserError("data.name: the dataset has no hashtags; build one with hashtags or captions by `data build`")
    names = fields.names(source, "hashtags")
    return (_as_texts(value, names) for value in source.column("hashtags"))


def _as_texts(value, names: tuple[str, ...]) -> tuple[str, ...]:
    """Hashtags as text: they are, or are indices into `names`."""
    return tuple(names[i] for i in value) if names else value


def tagged_indices(source: Source) -> np.ndarray:
    """The records that carry a hashtag of the vocabulary, int64 [tagged].

    Raises:
      UserError: the source has no vocabulary of hashtags, or no record carries one.
    """
    if not fields.names(source, "hashtags"):
        raise UserError("data.untagged: 'skip' needs hashtags; set data.vocabulary or data.hashtags, or use 'keep'")
    tagged = np.flatnonzero([len(ids) > 0 for ids in source.column("hashtags")])
    if not len(tagged):
        raise UserError("data.untagged: no image carries a hashtag of the vocabulary; was it made from this dataset?")
    return tagged


def few_shot_indices(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Draws `shots` distinct records of each class, all of a class that has fewer.

    Args:
      labels: int [records]; negative labels are unknown and never drawn.
      shots: records per class.
      seed: of the draw; one draw for k shots begins with the draw for k - 1 shots of the same seed in each class.

    Returns:
      int64 [chosen], sorted by class.
    """
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels)
    classes = np.unique(labels[labels >= 0])
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:shots] for c in classes]).astype(np.int64)


def split_seeds(seed: int, splits: int) -> list[int]:
    """A seed for the draw of each split, which does not depend on how many others there are."""
    sequences = (np.random.SeedSequence((seed, split)) for split in range(splits))
    return [int(sequence.generate_state(1)[0]) for sequence in sequences]


def digest(*parts: str | bytes) -> str:
    """A short stable hash of texts and bytes: 16 hexadecimal digits."""
    sha = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        sha.update(len(part).to_bytes(8, "little") + part)
    return sha.hexdigest()[:16]


def _folders(path: pathlib.Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _nearest_parent(path: pathlib.Path) -> pathlib.Path:
    return next(p for p in path.absolute().parents if p.is_dir())
