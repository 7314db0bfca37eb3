"""Recognises the kind of an input, and gives its reader."""

import glob
import os

from etils import epath

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data.building import sidecar
from mae_pp_jax.data.building.folders import ClassFolders
from mae_pp_jax.data.building.items import Columns, Reader
from mae_pp_jax.data.building.tars import TarReader

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_RECORDS = (".tfrecord", ".tfrecords", ".array_record")


def open_input(source: str, *, sidecar_file: str, columns: str, input_data_dir: str) -> Reader:
    """The reader of an input.

    Args:
      source: a folder of images, tars (a file, a pattern, or a folder of them), record files likewise, or the name or
        folder of a dataset that TFDS has prepared.
      sidecar_file: the file with a row per image, relative to the folder; empty: metadata.jsonl or .csv if it is there.
      columns: which column means what, see `Columns.parse`.
      input_data_dir: where TFDS keeps the dataset that is read; empty: its default.

    Raises:
      UserError: no such input, or of no known kind.
    """
    meanings = Columns.parse(columns)
    path = os.path.expanduser(source)
    folder = epath.Path(path)
    if folder.is_dir() and not (folder / "dataset_info.json").exists():
        names = sorted(entry.name for entry in folder.iterdir())
        rows = sidecar_file or next((name for name in sidecar.NAMES if name in names), "")
        if rows:
            return sidecar.SidecarReader(path, _below(path, rows), meanings)
        if found := _files(path, names):
            return _reader(found, meanings)
        return ClassFolders(path)
    if sidecar_file:
        raise UserError(f"--sidecar: {sidecar_file} needs a folder of images, and --from={source} is none")
    if found := sorted(glob.glob(path)) if "://" not in path else sorted(map(str, _remote_glob(path))):
        if not folder.is_dir():
            return _reader(tuple(found), meanings)
    if path.startswith(("/", ".", "~")) and not folder.exists():
        raise UserError(f"--from: nothing is at {source}")
    from mae_pp_jax.data.building import records  # imports TFDS

    return records.prepared_dataset(path, input_data_dir, meanings)


def _below(root: str, name: str) -> str:
    """A sidecar is named relative to the folder, or else by a path of its own."""
    inside = os.path.join(root, name)
    return inside if epath.Path(inside).exists() else os.path.expanduser(name)


def _files(root: str, names: list[str]) -> tuple[str, ...]:
    for suffixes in (_TARS, _RECORDS):
        if chosen := [name for name in names if _is_kind(name, suffixes)]:
            return tuple(os.path.join(root, name) for name in chosen)
    return ()


def _reader(paths: tuple[str, ...], columns: Columns) -> Reader:
    if all(_is_kind(path, _TARS) for path in paths):
        return TarReader(tuple(paths), columns)
    if all(_is_kind(path, _RECORDS) for path in paths):
        from mae_pp_jax.data.building import records

        return records.RecordReader(tuple((path, None) for path in paths), columns)
    raise UserError(f"--from: {paths[0]} is neither a folder nor one of {', '.join((*_TARS, *_RECORDS))}")


def _is_kind(path: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file name has one of the suffixes; records may carry their shard's number after it."""
    name = os.path.basename(path)
    return name.endswith(suffixes) or any(f"{suffix}-" in name for suffix in suffixes if suffix in _RECORDS)


def _remote_glob(path: str):
    parent, _, pattern = path.rpartition("/")
    return epath.Path(parent).glob(pattern)
