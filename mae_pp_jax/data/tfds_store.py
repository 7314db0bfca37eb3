"""TFDS datasets as a source: found or prepared by name, stored as array_record, read by index without TensorFlow."""

import contextlib
import difflib
import hashlib
import importlib
import json
import logging
import os
import pathlib
import struct
import sys
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import file_adapters
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.proto import tf_example_pb2

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import caching, fields, text
from mae_pp_jax.data.builders import BUILDERS

_FORMAT = file_adapters.FileFormat.ARRAY_RECORD
_INFO = "dataset_info.json"
# TFDS's ten tries, each waiting longer, keep a user without a network waiting for four minutes.
_DOWNLOAD_TRIES = 4


class TfdsSource:
    """A split of a TFDS dataset with images; see `fields.Source`.

    Args:
      name: as TFDS takes it: `cifar10`, `imagenet2012:5.1.0`, `imagenet_v2/matched-frequency`; or the folder of a
        prepared dataset (see `prepared_folder`).
      data_dir: TFDS's folder of datasets; empty for its default.
      split: as TFDS takes it: `train`, `train[:80%]`, `train+test`.
      cache: folder of caches, where columns are kept once they have been read; empty: the user's.
    """

    def __init__(self, name: str, data_dir: str, split: str, cache: str = ""):
        builder = prepared(name, data_dir)
        self._split, self._full_name, self._cache = split, builder.info.full_name, cache
        try:
            files = builder.info.splits[split].file_instructions
        except (KeyError, ValueError):
            files = []
        if not files:
            have = ", ".join(f"{s} ({info.num_examples:,})" for s, info in builder.info.splits.items())
            raise UserError(f"data: split '{split}' of {name} does not exist or is empty; it has {have}")
        self._ends = np.cumsum([file.take for file in files])
        self._shards = [_as_array_record(file.filename) for file in files]
        if remote := [s for s in self._shards if "://" in s and not s.startswith("gs://")]:
            raise UserError(f"data.name: array_record reads local disks and gs://, not {remote[0]}; copy {name} to one")
        for shard in self._shards:
            if not epath.Path(shard).exists():
                raise UserError(f"data.name: shard {shard} of {name} is missing; restore it or prepare {name} again")
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        with _as_user_error(f"cannot open split {split} of {name}"):
            self._records = builder.as_data_source(split, deserialize_method=raw, file_format=_FORMAT)
        found = {name: _readable(feature) for name, feature in builder.info.features.items()}
        self._readers = {name: reader for name, (_, reader) in found.items() if reader}
        self.fields = {name: found[name][0] for name in self._readers}
        if not isinstance(self.fields.get("image"), fields.Image):
            has = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in builder.info.features.items())
            raise UserError(f"data.name: {self._full_name} is no image dataset; its features are {has}")
        sizes = map(storage.size, self._shards)
        shards = [[epath.Path(p).name, size, f.skip, f.take] for p, size, f in zip(self._shards, sizes, files)]
        identity = json.dumps([self._full_name, split, len(self._records), shards])
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        features = self._features(index)
        return {name: read(features[name]) for name, read in self._readers.items()}

    def column(self, name: str) -> Iterator:
        read = self._readers[name]
        if isinstance(self.fields[name], fields.Image):
            return (read(self._features(index)[name]) for index in range(len(self)))
        return caching.column(self, name, self._cache, lambda index: read(self._features(index)[name]))

    def describe(self, index: int) -> str:
        return f"{self._full_name}, split {self._split}, record {index}"

    def _features(self, index: int):
        # Parsing the record here, not through the feature decoders, takes about 20 µs in place of 140.
        try:
            data = self._records[index]
            features = tf_example_pb2.Example.FromString(data).features.feature
        except Exception as error:  # array_record's and protobuf's own
            raise self._damaged(index) from error
        if not data:  # what array_record gives for a record past the end of a shard that was cut off
            raise self._damaged(index)
        return features

    def _damaged(self, index: int) -> UserError:
        shard = self._shards[int(np.searchsorted(self._ends, index, side="right"))]
        return UserError(f"data.name: {self.describe(index)}: shard {shard} is damaged or gone; restore it")


def prepared_folder(name: str) -> epath.Path | None:
    """The folder of a prepared dataset: `name` itself, if TFDS has written one there, or the only one in it (a version).

    Takes whatever paths etils does, such as gs:// and s3://.
    """
    path = epath.Path(name).expanduser()
    if not path.is_dir():
        return None
    found = [folder for folder in (path, *path.glob("*")) if (folder / _INFO).exists()]
    return found[0] if found[:1] == [path] or len(found) == 1 else None


def is_stored(name: str, data_dir: str) -> bool:
    """Whether TFDS's folder holds a dataset of this name, in any version."""
    root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    return any((root / name).glob(f"*/{_INFO}"))


def prepared(name: str, data_dir: str):
    """The TFDS builder of a dataset that stands ready as array_record; prepares a dataset that is not there yet.

    Raises:
      UserError: unknown name; no network; files to be fetched by hand; stored in a format without random access.
    """
    builder = _builder(name, data_dir)
    if not _is_prepared(builder):
        with _lock(builder):
            builder = _builder(name, data_dir)  # another process may have prepared it meanwhile
            if not _is_prepared(builder):
                _prepare(builder, ours=name in BUILDERS)
    builder = tfds.builder_from_directory(builder.data_dir)
    if _FORMAT not in builder.info.available_file_formats():
        where = f" --data_dir={data_dir}" if data_dir else ""
        raise UserError(
            f"data.name: {name} is stored as {builder.info.file_format.value}, which has no random access; "
            f"convert it once: python -m mae_pp_jax data prepare --name={name}{where}"
        )
    return builder


def stored(name: str, data_dir: str):
    """The TFDS builder of a dataset in whatever format it is stored; prepares one that is not there yet."""
    builder = _builder(name, data_dir)
    if not _is_prepared(builder):
        return prepared(name, data_dir)
    return tfds.builder_from_directory(builder.data_dir)


def convert(name: str, data_dir: str) -> None:
    """Adds array_record shards to a dataset that is stored as tfrecord; does nothing if they are there.

    The tfrecord shards stay. The new format is declared last, so a conversion that was stopped half-way has no effect.
    """
    builder = _builder(name, data_dir)
    if not _is_prepared(builder):
        return
    stored = tfds.builder_from_directory(builder.data_dir).info
    if _FORMAT in stored.available_file_formats():
        return
    if stored.file_format is not file_adapters.FileFormat.TFRECORD:
        raise UserError(f"data.name: {name} is stored as {stored.file_format.value}; only tfrecord can be converted")
    write = file_adapters.ADAPTER_FOR_FORMAT[_FORMAT].write_examples
    with _lock(builder), _as_user_error(f"cannot convert {name} in {builder.data_dir}"):
        for split in stored.splits.values():
            template = split.filename_template.replace(filetype_suffix=_FORMAT.value)
            for index, shard in enumerate(split.filepaths):
                with _renamed(template.sharded_filepath(shard_index=index, num_shards=split.num_shards)) as half:
                    write(half, enumerate(tfrecords(shard)))
        info = epath.Path(builder.data_dir) / _INFO
        content = json.loads(info.read_text()) | {"alternativeFileFormats": [_FORMAT.value]}
        with _renamed(info) as half:
            half.write_text(json.dumps(content, indent=2))


@contextlib.contextmanager
def _renamed(target: epath.Path) -> Iterator[epath.Path]:
    """Gives a file to write that takes the place of `target` once it is whole."""
    half = target.parent / f"incomplete.{target.name}"
    try:
        yield half
        half.replace(target)
    finally:
        half.unlink(missing_ok=True)


def _builder(name: str, data_dir: str):
    """The builder of a dataset, ready or not, in whatever format it is stored."""
    where = {"data_dir": data_dir} if data_dir else {}
    if folder := prepared_folder(name):
        return tfds.builder_from_directory(folder)
    if name in BUILDERS:
        return importlib.import_module(BUILDERS[name]).Builder(**where)
    try:
        return tfds.builder(name, **where)
    except Exception as error:  # TFDS raises many types of exceptions for a name that it refuses
        known = [*BUILDERS, *tfds.list_builders(with_community_datasets=False)]
        if name.split("/")[0].split(":")[0] in known:
            raise UserError(f"data.name: TFDS refuses '{name}': {_first_line(error)}") from error
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; our own: {', '.join(BUILDERS)}"
        raise UserError(f"data.name: '{name}' is neither a folder nor a dataset that TFDS knows{hint}") from error


def _is_prepared(builder) -> bool:
    """Whether a dataset is written: TFDS writes this file last, into a folder that it then renames as a whole."""
    return (epath.Path(builder.data_dir) / _INFO).exists()


def _prepare(builder, *, ours: bool) -> None:
    """Lets TFDS download and write a dataset, quietly except for progress on a terminal."""
    for stale in epath.Path(builder.data_dir).parent.glob(f"incomplete.*_{builder.version}"):
        stale.rmtree()  # of a preparation that was killed; we hold the lock, so nobody is writing it
    shown = sys.stderr.isatty() and not ours
    if not shown:
        tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)  # Google's copies are tfrecord, which need TensorFlow
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of every try; the error at the end says it all
    tries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, _DOWNLOAD_TRIES
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_as_user_error(f"cannot prepare {builder.name} in {builder.data_dir}"))
            out = sys.stderr if shown else stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(out))
            builder.download_and_prepare(download_config=config, file_format=_FORMAT)
    except UserError:
        _remove_empty(builder)
        raise
    finally:
        downloader.MAX_RETRIES = tries


@contextlib.contextmanager
def _as_user_error(what: str) -> Iterator[None]:
    """Turns whatever TFDS, the network or the disk raises into one line."""
    try:
        yield
    except AssertionError as error:  # how TFDS says that files must be fetched by hand
        text = " ".join(str(error).split())
        raise UserError(f"data.name: {what}: {text}") from error
    except Exception as error:
        hint = "; is there a network?" if "Connection" in type(error).__name__ else ""
        raise UserError(f"data.name: {what}: {type(error).__name__}: {_first_line(error)}{hint}") from error


@contextlib.contextmanager
def _lock(builder) -> Iterator[None]:
    """Holds the lock for writing a dataset, waiting for it; none is needed on storage without file locks."""
    folder = os.path.expanduser(builder.data_dir_root)
    if "://" in folder:
        yield
        return
    with contextlib.ExitStack() as held:
        with _as_user_error(f"cannot write to {folder}"):
            os.makedirs(folder, exist_ok=True)
            held.enter_context(storage.lock(pathlib.Path(folder, f".{builder.name}.lock"), builder.name))
        yield


def _remove_empty(builder) -> None:
    """Removes what a failed preparation left: unfinished downloads and the empty folders above them."""
    root = os.path.expanduser(builder.data_dir_root)
    for top in (os.path.join(root, "downloads"), os.path.join(root, builder.name)):
        for folder, _, files in os.walk(top, topdown=False):
            for file in files:
                if ".tmp." in file:
                    os.unlink(os.path.join(folder, file))
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(folder)


def _readable(feature) -> tuple[fields.Field | None, Callable | None]:
    """The kind of a feature of TFDS, and how it is read from a tf.train.Example; (None, None) for other kinds."""
    inner = feature.feature if type(feature) is tfds.features.Sequence else None
    if isinstance(feature, tfds.features.Image):
        return fields.Image(), lambda f: f.bytes_list.value[0]
    if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes:
        return fields.Label(tuple(map(text.name, feature.names))), lambda f: f.int64_list.value[0]
    if isinstance(feature, tfds.features.Text):
        return fields.Text(), lambda f: _text(f.bytes_list.value[0])
    if isinstance(inner, tfds.features.ClassLabel) and inner.num_classes:
        return fields.Ids(tuple(map(text.name, inner.names))), lambda f: np.array(f.int64_list.value, np.int32)
    if isinstance(inner, tfds.features.Text):
        return fields.Texts(), lambda f: tuple(map(_text, f.bytes_list.value))
    return None, None


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _as_array_record(shard: str) -> str:
    """The file of a shard in our format; its split may be described by the tfrecord files that it was converted from."""
    path = epath.Path(shard)
    return str(path.with_name(path.name.replace(".tfrecord-", f".{_FORMAT.value}-")))


def tfrecords(path) -> Iterator[bytes]:
    """The records of a TFRecord file: length (8 bytes), its checksum (4), the record, its checksum (4)."""
    with epath.Path(path).open("rb") as file:
        while header := file.read(12):
            (length,) = struct.unpack("<Q", header[:8])
            record = file.read(length)
            if len(record) < length or len(file.read(4)) < 4:
                raise EOFError(f"{path} ends in the middle of a record")
            yield record


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
