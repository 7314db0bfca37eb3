"""Files written whole or not at all; a disk that is full or cannot be written becomes one line."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
from collections.abc import Iterator

from mae_pp_jax.core.errors import UserError

log = logging.getLogger(__name__)

# Array storage and TensorFlow wrap the system's error in types of their own and leave only its text.
_REASONS = tuple(
    os.strerror(code)
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO)
)


def local(path: str | os.PathLike, key: str = "--workdir") -> pathlib.Path:
    """The path, which must be one of this machine's file system.

    Raises:
      UserError: it is an address such as gs://bucket/run, of which pathlib would make a folder `gs:` here.
    """
    if "://" in str(path):
        raise UserError(
            f"{key}: {path} is no folder of this machine; give one, on storage that all hosts mount if many"
        )
    return pathlib.Path(path)


@contextlib.contextmanager
def writing(path: str | os.PathLike, key: str = "--workdir") -> Iterator[None]:
    """Raises `UserError` naming `path`, and the key that chose it, when what happens inside lacks space or permission."""
    try:
        yield
    except UserError:  # says already what was wrong, maybe with what was read meanwhile
        raise
    except Exception as error:
        reason = next((r for r in _REASONS if r.lower() in str(error).lower()), None)
        if reason is None:
            raise
        raise UserError(f"{key}: cannot write {path}: {reason.lower()}; free space or choose another folder") from error


@contextlib.contextmanager
def lock(path: pathlib.Path, what: str) -> Iterator[None]:
    """Holds the one permission that the file `path` stands for, waiting for it. A process that dies gives it back.

    Args:
      path: the file.
      what: what its holder makes, for the line that tells who waits why.
    """
    while True:
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process, which makes %s", what)
            fcntl.flock(file, fcntl.LOCK_EX)
        # The holder before us removed the file when done; then ours is no longer the one that others see.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
    try:
        yield
    finally:
        path.unlink()
        file.close()


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file beside its place and renames it when complete, so that nobody ever sees half of it.

    Raises:
      UserError: the disk is full or cannot be written; what stood at `path` before still does.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_json(path: pathlib.Path, value) -> None:
    """Writes JSON whole or not at all; see `write_whole`."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: pathlib.Path):
    """The content of a JSON file.

    Raises:
      UserError: it is damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: is damaged and cannot be read ({error}); restore it or remove its folder") from error
