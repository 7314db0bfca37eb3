"""The only door to the files of run folders, weights, vocabularies, reports and drawings (etils.epath).

Every other module holds such paths as `Path`, joins them with `/`, and reads, writes, lists and removes through the
functions here. Files appear whole or not at all; a disk that is full or cannot be written becomes one line.
Addresses of buckets (gs://…) are refused in one line until run folders in buckets are supported.
"""

import contextlib
import errno
import fcntl
import functools
import glob
import io
import json
import logging
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np

os.environ.setdefault("EPATH_USE_TF", "false")  # epath would otherwise read addresses through TensorFlow

from etils import epath  # noqa: E402

from mae_pp_jax.core.errors import UserError  # noqa: E402

log = logging.getLogger(__name__)

Path = epath.Path
PathLike = str | os.PathLike

# Array storage and TensorFlow wrap the system's error in types of their own and leave only its text.
_REASONS = tuple(
    os.strerror(code)
    for code in (
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ENAMETOOLONG),
    )
)


def path(text: PathLike, key: str = "--workdir") -> Path:
    """The path that a user gave.

    Raises:
      UserError: it is an address such as gs://bucket/run, which run folders do not support yet.
    """
    if "://" in str(text):
        raise UserError(
            f"{key}: {text} is no folder of this machine, and addresses are not supported yet; give a path, on storage "
            "that all hosts mount if there are many"
        )
    return Path(text)


def absolute(path: PathLike) -> Path:
    """The path from the root on, as Orbax and references in checkpoints want it; an address stays as it is."""
    return Path(path).resolve()


def user_cache() -> Path:
    """The folder for what can be made again: `XDG_CACHE_HOME` or `~/.cache`, and in it `mae_pp_jax`.

    Where there is no home, or it cannot be written, the folder for temporary files takes its place; one line says so.
    """
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    folder = Path(home) / "mae_pp_jax"
    try:
        if not os.path.isabs(home):
            raise UserError(f"no home folder is known, {home} is none")
        check_writable(folder, "XDG_CACHE_HOME", folder=True)
    except UserError as error:
        return _temporary_cache(str(error))
    return folder


def ensure_home() -> None:
    """Gives this process and its libraries a home folder where the system knows none, as in containers."""
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        os.environ["HOME"] = str(_temporary_cache("no home folder is known (HOME is not set)"))
    elif "TFDS_DATA_DIR" not in os.environ and not exists(own := os.path.join(home, "tensorflow_datasets")):
        try:
            check_writable(own, "HOME", folder=True)
        except UserError:
            os.environ["TFDS_DATA_DIR"] = str(user_cache() / "tensorflow_datasets")


@functools.cache
def _temporary_cache(problem: str) -> Path:
    """A folder of this user alone: compiled programs are run as they are found there."""
    folder = Path(tempfile.gettempdir()) / f"mae_pp_jax_{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        folder = Path(tempfile.mkdtemp(prefix="mae_pp_jax_"))
    log.warning("cache: %s; using %s instead", problem, folder)
    return folder


def exists(path: PathLike) -> bool:
    return Path(path).exists()


def is_dir(path: PathLike) -> bool:
    return Path(path).is_dir()


def is_file(path: PathLike) -> bool:
    return Path(path).is_file()


def size(path: PathLike) -> int:
    """Bytes of a file. (epath's own `stat` also looks up the owner's name, and fails where the system has none.)"""
    return Path(path).stat().length if "://" in str(path) else os.path.getsize(path)


def modified(path: PathLike) -> float:
    """When a file was last written, in seconds since the epoch."""
    return os.path.getmtime(path)


def free_space(folder: PathLike) -> int:
    """Bytes that are free where a folder lies."""
    return shutil.disk_usage(folder).free


def names(folder: PathLike) -> list[str]:
    """Names of what lies directly in a folder, in alphabetical order; none when there is no such folder."""
    try:
        return sorted(entry.name for entry in Path(folder).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def files(folder: PathLike) -> list[str]:
    """Every file in a folder and the folders below it, as paths relative to it, in alphabetical order."""
    found = ((Path(where).relative_to(folder), inside) for where, _, inside in Path(folder).walk())
    return sorted(str(where / name) for where, inside in found for name in inside)


def matching(pattern: str) -> list[str]:
    """What a pattern such as `photos/*.jpg` or `photos/**/*.png` matches, in alphabetical order.

    What exists is never read as a pattern: a folder named `photos [2019]` is that folder.
    """
    pattern = os.path.expanduser(pattern)
    if os.path.lexists(pattern):
        return [pattern]
    parts, known = pattern.split("/"), 0
    while known < len(parts) - 1 and os.path.lexists("/".join(parts[: known + 1]) or "/"):
        known += 1
    escaped = [*map(glob.escape, parts[:known]), *parts[known:]]
    return sorted(glob.glob("/".join(escaped), recursive=True))


def read_bytes(path: PathLike) -> bytes:
    return Path(path).read_bytes()


def read_text(path: PathLike) -> str:
    return Path(path).read_bytes().decode()


def read_json(path: PathLike):
    """The content of a JSON file.

    Raises:
      UserError: it is damaged.
    """
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path}: is damaged and cannot be read ({error}); restore it or remove its folder") from error


def reading(path: PathLike) -> IO[bytes]:
    """An open binary file to read from, with `seek`."""
    return Path(path).open("rb")


def appending(path: PathLike) -> IO[str]:
    """An open text file to write lines at the end of."""
    return io.TextIOWrapper(Path(path).open("ab"), encoding="utf-8", errors="backslashreplace")


def nowhere() -> IO[bytes]:
    """An open file that drops what is written to it."""
    return open(os.devnull, "wb")


def filling(path: PathLike) -> IO[bytes]:
    """An open binary file to write piece by piece; for a place that gets its final name by `move` when complete."""
    return Path(path).open("wb")


@contextlib.contextmanager
def writing(path: PathLike, key: str = "--workdir") -> Iterator[None]:
    """Raises `UserError` naming `path` and the key that chose it when what happens inside lacks space or permission."""
    try:
        yield
    except UserError:  # says already what was wrong, maybe with what was read meanwhile
        raise
    except Exception as error:
        reason = next((r for r in _REASONS if r.lower() in str(error).lower()), None)
        if reason is None:
            raise
        raise UserError(f"{key}: cannot write {path}: {reason.lower()}; free space or choose another folder") from error


def make_folder(path: PathLike) -> list[Path]:
    """Makes a folder and those it lies in, and returns the ones that were not there, outermost first."""
    at = path = Path(path)
    made: list[Path] = []
    while not at.exists():
        made.insert(0, at)
        at = at.parent
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: Iterable[PathLike]) -> None:
    """Removes folders, the last first, as far as they are empty; for what `make_folder` returned."""
    for folder in reversed(list(folders)):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def write_whole(path: PathLike, content: str | bytes, key: str = "--workdir") -> None:
    """Writes a file beside its place and renames it when complete: others see it whole or not at all.

    Raises:
      UserError: the disk is full or cannot be written; what stood at `path` before still does.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with writing(path, key):
        try:
            # A file name of other bytes than UTF-8 has characters that UTF-8 lacks: JSON can write them as \\udcXX.
            text = isinstance(content, str)
            temporary.write_bytes(content.encode("utf-8", "backslashreplace") if text else content)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def finite(value: Any) -> Any:
    """A JSON value in which None stands for every number that is not finite; numpy scalars become Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def json_text(value: Any, indent: int | None = None) -> str:
    """Valid JSON: null where a number is not finite, for which JSON has no word."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: PathLike, value: Any, key: str = "--workdir") -> None:
    """Writes JSON whole or not at all; see `write_whole` and `json_text`."""
    write_whole(path, json_text(value, indent=1) + "\n", key)


def create(path: PathLike, content: str, mark: str) -> bool:
    """Writes a new file whole, and returns whether it was new: of many that try at once one succeeds, also on NFS.

    Args:
      path: the file.
      content: of the file.
      mark: text that no other process uses, for the name of a temporary file beside it.

    Raises:
      OSError: the folder is not there or cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{mark}.tmp")
    try:
        temporary.write_bytes(content.encode())
        os.link(temporary, path)
        return True
    except FileExistsError:  # or ours: a server that did not hear the answer is asked twice
        return os.path.samefile(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):  # of a file system without hard links
            raise
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(content)
            return True
        except FileExistsError:
            return False
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def move(source: PathLike, to: PathLike) -> None:
    """Gives a file or folder another place, where nothing or an empty folder may stand.

    A file or folder that is complete so appears at once, where both lie on the same disk.
    """
    if is_dir(to):
        os.rmdir(to)
    shutil.move(source, to)


def remove(path: PathLike) -> None:
    """Removes a file, or a folder with all that is in it; nothing happens where there is none."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def check_writable(path: PathLike, key: str, *, folder: bool = False) -> None:
    """Finds out before any work whether a file or a folder can be written; leaves nothing behind.

    Args:
      path: the file, or the folder.
      key: what the user chose it with, for the error.
      folder: whether it is a folder.

    Raises:
      UserError: its folder cannot be made or written, or it is a folder where a file is wanted, or the reverse.
    """
    path = Path(path)
    if path.exists() and path.is_dir() != folder:
        raise UserError(f"{key}: {path} is a {'file; give a folder' if folder else 'folder; give a file'}")
    inside = path if folder else path.parent
    made: list[Path] = []
    probe = inside / f"{'' if folder else path.name}.{os.getpid()}.tmp"
    try:
        made = make_folder(inside)
        probe.write_bytes(b"")
        if path.is_file() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UserError(f"{key}: cannot write {path}: {why}; choose another place, or make it writable") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
        remove_empty(made)


@contextlib.contextmanager
def lock(path: PathLike, what: str) -> Iterator[None]:
    """Holds an exclusive lock on a local file, waiting for it if need be. A process that dies releases it.

    Args:
      path: the file.
      what: what its holder makes, for the line that tells who waits why.
    """
    while True:
        file = open(path, "w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process, which makes %s", what)
            fcntl.flock(file, fcntl.LOCK_EX)
        # The holder before us removed the file when done; then ours is no longer the one that others see.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()
    try:
        yield
    finally:
        os.unlink(path)
        file.close()
