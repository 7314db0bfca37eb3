"""Datasets that TFDS or others have written already: array_record or TFRecord files of tf.train.Example."""

import dataclasses
import os
from collections.abc import Iterator

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from mae_pp_jax.core import storage
from mae_pp_jax.data import text, tfds_store
from mae_pp_jax.data.building.items import DAMAGED, NO_IMAGE, UNREADABLE, Broken, Columns, Content, Item, Part

_READ_AT_ONCE = 64  # records


@dataclasses.dataclass(frozen=True)
class RecordReader:
    """Examples in files.

    Attributes:
      files: (path, split or None) of each file.
      columns: which feature means what; `image` holds an encoded file.
      names: feature → names of the classes that its numbers stand for.
      lists: features that hold a list, even where it has one entry.
      class_names: of the label, in the dataset's order.
      beside: (name, reason) of the other files of the folder of record files.
    """

    files: tuple[tuple[str, str | None], ...]
    columns: Columns
    names: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    lists: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    beside: tuple[tuple[str, str], ...] = ()

    def parts(self) -> list[Part]:
        return [Part(path, split=split, size=storage.size(path)) for path, split in self.files]

    def items(self, part: Part) -> Iterator[Item]:
        name = os.path.relpath(part.path, os.path.commonpath([os.path.dirname(path) for path, _ in self.files]))
        index = -1
        try:
            for index, record in enumerate(_records(part.path)):
                yield self._item(f"{name}/{index}", record, part.split)
        except Exception as error:  # of any kind: damage never ends the build
            detail = f"{str(error) or type(error).__name__}; what follows in this file is lost"
            yield Item(f"{name}, after record {index}", Broken(DAMAGED, detail))

    def others(self) -> Iterator[tuple[str, str]]:
        """(name, reason) of the other files in the folder of record files."""
        return iter(self.beside)

    def _item(self, key: str, record: bytes, split: str | None) -> Item:
        try:
            return self._example(key, tf_example_pb2.Example.FromString(record).features.feature, split)
        except Exception as error:  # of any kind: protobuf's DecodeError has no public home
            return Item(key, Broken(UNREADABLE, f"no tf.train.Example: {error}"))

    def _example(self, key: str, features, split: str | None) -> Item:
        row = {name: self._value(name, feature) for name, feature in features.items()}
        image = self.columns.value("image", row)
        row = {name: value for name, value in row.items() if name not in self.columns.names["image"]}
        read = Content(image) if isinstance(image, bytes) else Broken(NO_IMAGE, "no image among its features")
        return self.columns.item(key, read, row, split)

    def _value(self, name: str, feature):
        """The content of a feature: one value, or the list of them; numbers of classes become their names."""
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind else []
        if name in self.names:
            known = self.names[name]
            values = [known[v] if 0 <= v < len(known) else None for v in values]
        return values[0] if len(values) == 1 and name not in self.lists else values


def prepared_dataset(name: str, data_dir: str, columns: Columns) -> RecordReader:
    """Reads a dataset that TFDS has prepared, by its name or folder."""
    folder = epath.Path(name).expanduser()
    written = (folder / "dataset_info.json").exists()
    builder = tfds.builder_from_directory(folder) if written else tfds_store.stored(name, data_dir)
    names, lists = {}, []
    for feature_name, feature in builder.info.features.items():
        if isinstance(feature, tfds.features.Sequence):
            lists.append(feature_name)
            feature = feature.feature
        if isinstance(feature, tfds.features.ClassLabel):
            names[feature_name] = tuple(feature.names)
    files = [(str(path), split.name) for split in builder.info.splits.values() for path in split.filepaths]
    label = next((names[column] for column in columns.names["label"] if column in names), ())
    classes = dict.fromkeys(filter(None, map(text.name, label)))
    return RecordReader(tuple(files), columns, names, tuple(lists), tuple(classes))


def _records(path: str) -> Iterator[bytes]:
    if ".array_record" not in os.path.basename(path):
        yield from tfds_store.tfrecords(path)
        return
    reader = array_record_module.ArrayRecordReader(path)
    try:
        total = reader.num_records()
        for start in range(0, total, _READ_AT_ONCE):
            yield from reader.read(list(range(start, min(start + _READ_AT_ONCE, total))))
    finally:
        reader.close()
