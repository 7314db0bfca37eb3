"""The two things that are done to a part of the input: to look at it, and to write it. Each leaves files, whole or not.

In the folder of an unfinished build: `scan-00000.npz` (hashes and what was found), `assign-00000.npy` (the split of
each item), `dataset/piece-00000.SPLIT` (records) and `piece-00000.json` (counts, and what was left out; written last).
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import tempfile

import numpy as np
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import tree
from mae_pp_jax.data.building import encoding as encoding_lib
from mae_pp_jax.data.building import splitting as splitting_lib
from mae_pp_jax.data.building.encoding import Encoding
from mae_pp_jax.data.building.items import TWICE, UNREADABLE, Item, LeftOut, Part, Reader, stable_hash
from mae_pp_jax.data.building.splitting import Splitting


@dataclasses.dataclass(frozen=True)
class Contents:
    """What the whole input holds, known when all of it has been looked at.

    Attributes:
      classes: names of the classes in the order of their numbers; empty without labels.
      hashtags, captions: whether there are any.
      splits: names of all splits.
    """

    classes: tuple[str, ...]
    hashtags: bool
    captions: bool
    splits: tuple[str, ...]


class Digest:
    """A hash of items, with the bytes of their images: of what is read, whatever the sizes and times of the files."""

    def __init__(self):
        self._hash = hashlib.sha256()

    def read(self, item: Item) -> bytes:
        """The bytes of an item's image, which it adds.

        Raises:
          LeftOut: the item cannot be used; that is added as well.
        """
        said = [item.key, item.hashtags, item.caption, item.label, item.split, item.columns]
        self._hash.update(repr(said).encode("utf-8", "surrogatepass"))
        try:
            data = item.read()
        except LeftOut as error:
            self._hash.update(error.reason.encode())
            raise
        self._hash.update(hashlib.sha256(data).digest())
        return data

    def value(self) -> str:
        return self._hash.hexdigest()


@dataclasses.dataclass(frozen=True)
class Check:
    """Computes the digest of a part, to compare it with what was read before."""

    work: str
    reader: Reader

    def done(self, index: int) -> epath.Path:
        """The file with the digest of a part."""
        return epath.Path(self.work) / f"check-{index:05}.txt"

    def __call__(self, numbered: tuple[int, Part]) -> None:
        index, part = numbered
        digest = Digest()
        for item in self.reader.items(part):
            with contextlib.suppress(LeftOut):
                digest.read(item)
        put(self.done(index), digest.value().encode())


@dataclasses.dataclass(frozen=True)
class Scan:
    """Looks at a part: its digest, hashes of names and families, labels, and which columns there are."""

    work: str
    reader: Reader
    splitting: Splitting
    encoding: Encoding

    def done(self, index: int) -> epath.Path:
        """The file that says that a part has been looked at."""
        return epath.Path(self.work) / f"scan-{index:05}.npz"

    def __call__(self, numbered: tuple[int, Part]) -> None:
        index, part = numbered
        keys, families, own, labels, names, columns = [], [], [], collections.Counter(), [], {}
        hashtags = captions = False
        digest = Digest()
        for item in self.reader.items(part):
            keys.append(stable_hash(item.key))
            families.append(self._family(item, digest))
            columns |= dict.fromkeys(map(str, item.columns))
            if item.split is not None and item.split not in names:
                names.append(item.split)
            own.append(-1 if item.split is None else names.index(item.split))
            if item.label is not None:
                labels[item.label] += 1
            hashtags |= item.hashtags is not None
            captions |= item.caption is not None
        found = dict(splits=names, labels=labels, hashtags=hashtags, captions=captions, columns=list(columns))
        found["digest"] = digest.value()
        things = splitting_lib.hashes_of_family(self.splitting)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            keys=np.array(keys, np.uint64),
            families=np.array(families, np.uint64).reshape(len(keys), things).T,
            own=np.array(own, np.int16),
            found=np.frombuffer(json.dumps(found).encode(), np.uint8),
        )
        put(self.done(index), buffer.getvalue())

    def _family(self, item: Item, digest: Digest) -> list[int]:
        looks = (0, 0)
        with contextlib.suppress(LeftOut):  # reported when the part is written
            data = digest.read(item)
            if splitting_lib.LOOKS in self.splitting.by:
                looks = encoding_lib.looks(_prepare(data, self.encoding)[1])
        return splitting_lib.family_hashes(self.splitting, item.columns, looks)

    def result(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
        """Hashes of names [items], of families [things, items], own splits [items], and what was found."""
        with np.load(io.BytesIO(self.done(index).read_bytes())) as saved:
            return saved["keys"], saved["families"], saved["own"], json.loads(saved["found"].tobytes())


@dataclasses.dataclass(frozen=True)
class Write:
    """Reads, checks, encodes and writes the images of a part."""

    work: str
    reader: Reader
    encoding: Encoding
    contents: Contents
    digests: tuple[str, ...]

    def done(self, index: int) -> epath.Path:
        """The file that says that a part is written."""
        return epath.Path(self.work) / f"piece-{index:05}.json"

    def assignment(self, index: int) -> epath.Path:
        """The file with the split of each item."""
        return epath.Path(self.work) / f"assign-{index:05}.npy"

    def piece(self, index: int, split: str) -> epath.Path:
        """The records of a part that belong to a split."""
        return epath.Path(self.work) / "dataset" / f"piece-{index:05}.{split}"

    def __call__(self, numbered: tuple[int, Part]) -> None:
        index, part = numbered
        assigned = np.load(io.BytesIO(self.assignment(index).read_bytes()))
        stats = {split: collections.Counter() for split in self.contents.splits}
        left_out, writers = [], {}
        with tempfile.TemporaryDirectory(dir=None if "://" in self.work else self.work) as scratch:
            position, digest = -1, Digest()
            for position, item in enumerate(self.reader.items(part)):
                if position >= len(assigned):
                    break
                try:
                    data = digest.read(item)
                    if assigned[position] == splitting_lib.TWICE:
                        raise LeftOut(TWICE)
                    data, pixels = _prepare(data, self.encoding)
                except LeftOut as error:
                    left_out.append(left_out_entry(item.key, error.reason, error.detail))
                    continue
                split = self.contents.splits[assigned[position]]
                if split not in writers:
                    path = os.path.join(scratch, split)
                    writers[split] = array_record_module.ArrayRecordWriter(path, "group_size:1")
                record = self._record(item, data)
                writers[split].write(record)
                self._count(stats[split], item, record, pixels)
            if position + 1 != len(assigned) or digest.value() != self.digests[index]:
                raise UserError(f"--from: {part.path} changed while it was read; run the same command again")
            for split, writer in writers.items():
                writer.close()
                move(os.path.join(scratch, split), self.piece(index, split))
        put(self.done(index), json.dumps(dict(splits=stats, left_out=left_out)).encode())

    def _record(self, item: Item, data: bytes) -> bytes:
        """A serialised tf.train.Example as TFDS's features write it; the same item gives the same bytes."""
        features = {"image": [data], "id": [_encode(item.key)]}
        if self.contents.hashtags:
            features["hashtags"] = [_encode(tag) for tag in item.hashtags or ()]
        if self.contents.captions:
            features["caption"] = [_encode(item.caption or "")]
        example = tf_example_pb2.Example()
        for name, values in features.items():
            example.features.feature[name].bytes_list.value.extend(values)
        if self.contents.classes:
            label = -1 if item.label is None else self.contents.classes.index(item.label)
            example.features.feature["label"].int64_list.value.append(label)
        return example.SerializeToString(deterministic=True)

    def _count(self, stats: collections.Counter, item: Item, record: bytes, pixels: np.ndarray) -> None:
        stats["images"] += 1
        stats["bytes"] += len(record)
        stats["pixels"] += pixels.shape[0] * pixels.shape[1]
        stats["tagged"] += bool(item.hashtags)
        stats["hashtags"] += len(item.hashtags or ())
        stats["captioned"] += bool(item.caption)
        stats["labelled"] += item.label is not None


def left_out_entry(name: str, reason: str, detail: str = "") -> dict:
    """A line of the list of what is left out."""
    return dict(input=tree.legible(name), reason=reason, detail=tree.legible(detail))


def _prepare(data: bytes, encoding: Encoding) -> tuple[bytes, np.ndarray]:
    """As `encoding.prepare`; whatever a decoder raises is a reason to leave the image out."""
    try:
        return encoding_lib.prepare(data, encoding)
    except (LeftOut, UserError, OSError):
        raise
    except Exception as error:
        raise LeftOut(UNREADABLE, f"{type(error).__name__}: {error}") from error


def put(path: epath.Path, content: bytes) -> None:
    """Writes a file that other processes see whole or not at all."""
    half = path.parent / f"{path.name}.half-{os.getpid()}"
    half.write_bytes(content)
    half.replace(path)


def move(local: str, path: epath.Path) -> None:
    """Brings a finished local file to its place, which may be on other storage."""
    if "://" not in str(path):
        os.replace(local, path)
        return
    epath.Path(local).copy(path, overwrite=True)


def _encode(text: str) -> bytes:
    return tree.legible(text).encode()
