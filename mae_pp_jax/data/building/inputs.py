"""Recognises the kind of an input, and gives its reader."""

import glob
import os
from collections.abc import Sequence

from etils import epath

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import tree
from mae_pp_jax.data.building import sidecar
from mae_pp_jax.data.building.folders import ClassFolders
from mae_pp_jax.data.building.items import Columns, Reader
from mae_pp_jax.data.building.tars import TarReader

OTHER_KIND = "other kind of file"
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_RECORDS = (".tfrecord", ".tfrecords", ".array_record")
_PARQUET = (".parquet", ".parquet.gzip", ".pq")
_KINDS = (_TARS, _RECORDS, _PARQUET)


def open_input(source: str, *, sidecar_file: str, columns: str, input_data_dir: str) -> Reader:
    """The reader of an input.

    Args:
      source: a folder of images, tars (a file, a pattern, or a folder of them), record and Parquet files likewise, or
        the name or folder of a dataset that TFDS has prepared.
      sidecar_file: the file with a row per image, relative to the folder; empty: one of `sidecar.NAMES` if it is there.
      columns: which column means what, see `Columns.parse`.
      input_data_dir: where TFDS keeps the dataset that is read; empty: its default.

    Raises:
      UserError: no such input, or of no known kind.
    """
    meanings = Columns.parse(columns)
    path = os.path.expanduser(source)
    folder = epath.Path(path)
    if folder.is_dir() and not (folder / "dataset_info.json").exists():
        try:
            names = sorted(entry.name for entry in folder.iterdir())
        except OSError as error:
            raise UserError(f"--from: cannot read {source}: {error.strerror or error}") from error
        rows = sidecar_file or next((name for name in sidecar.NAMES if name in names), "")
        if rows:
            rows = _below(path, rows)
            if _is_kind(rows, _PARQUET):
                return _parquet(path, [rows], meanings, sidecar=True)
            return sidecar.SidecarReader(path, rows, meanings)
        if found := _files(path, names):
            return _reader(found, meanings, _beside(path, found))
        if found := _parquet_files(folder):
            return _parquet(path, found, meanings, whole=True)
        return ClassFolders(path, meanings)
    if sidecar_file:
        raise UserError(f"--sidecar: {sidecar_file} needs a folder of images, and --from={source} is none")
    if not folder.exists() and (found := _matching(path)):
        return _reader(tuple(found), meanings)
    if folder.exists() and not folder.is_dir():
        return _reader((path,), meanings)
    if not folder.exists() and (path.startswith(("/", ".", "~")) or glob.has_magic(path)):
        raise UserError(f"--from: nothing is at {source}" + (", or of that pattern" if glob.has_magic(path) else ""))
    from mae_pp_jax.data.building import records  # imports TFDS

    return records.prepared_dataset(path, input_data_dir, meanings)


def _matching(pattern: str) -> list[str]:
    """The files of a pattern; the folders at its beginning that exist as they are written are no part of it."""
    if "://" in pattern:
        parent, _, last = pattern.rpartition("/")
        return sorted(map(str, epath.Path(parent).glob(last)))
    known, rest = pattern, ""
    while known and not os.path.exists(known):
        parent, last = os.path.split(known)
        if parent == known:
            break
        known, rest = parent, os.path.join(last, rest) if rest else last
    return sorted(glob.glob(os.path.join(glob.escape(known), rest)))


def _below(root: str, name: str) -> str:
    """A sidecar is named relative to the folder, or else by a path of its own."""
    inside = os.path.join(root, name)
    return inside if epath.Path(inside).exists() else os.path.expanduser(name)


def _files(root: str, names: list[str]) -> tuple[str, ...]:
    for suffixes in (_TARS, _RECORDS):
        if chosen := [name for name in names if _is_kind(name, suffixes)]:
            return tuple(os.path.join(root, name) for name in chosen)
    return ()


def _beside(root: str, chosen: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(name, why it is not read) of the files of a folder other than the chosen ones."""
    if "://" in root:
        return ()
    names = {os.path.basename(path) for path in chosen}
    others = ((name, reason) for name, reason in tree.walk(root) if name not in names)
    return tuple((n, "in a folder below" if "/" in n else r if r == tree.HIDDEN else OTHER_KIND) for n, r in others)


def _parquet_files(folder: epath.Path) -> list[str]:
    """The Parquet files at any depth of a folder without pictures, in whose folders datasets keep them."""
    if "://" in str(folder):
        found = sorted(str(path) for path in folder.glob("**/*"))
    else:
        walked = list(tree.walk(str(folder)))
        if any(not reason for _, reason in walked):
            return []
        found = [os.path.join(folder, name) for name, reason in walked if reason == tree.OTHER]
    return [path for path in found if _is_kind(path, _PARQUET)]


def _parquet(root: str, paths: Sequence[str], columns: Columns, **how: bool) -> Reader:
    from mae_pp_jax.data.building import parquet  # slow to import

    return parquet.open_files(root, paths, columns, **how)


def _reader(paths: tuple[str, ...], columns: Columns, beside: tuple[tuple[str, str], ...] = ()) -> Reader:
    if all(_is_kind(path, _TARS) for path in paths):
        return TarReader(tuple(paths), columns, beside=beside)
    if all(_is_kind(path, _RECORDS) for path in paths):
        from mae_pp_jax.data.building import records

        return records.RecordReader(tuple((path, None) for path in paths), columns, beside=beside)
    if all(_is_kind(path, _PARQUET) for path in paths):
        return _parquet(os.path.commonpath([os.path.dirname(path) for path in paths]), paths, columns)
    first = next((kind for kind in _KINDS if _is_kind(paths[0], kind)), ())
    odd = next((path for path in paths if not _is_kind(path, first)), paths[0])
    raise UserError(f"--from: {odd} is neither a folder nor one of {', '.join(first or sum(_KINDS, ()))}")


def _is_kind(path: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file name has one of the suffixes; records may carry their shard's number after it."""
    name = os.path.basename(path).lower()
    return name.endswith(suffixes) or any(f"{suffix}-" in name for suffix in suffixes if suffix in _RECORDS)
