"""Files of pictures by folder, pattern or name, and batches of what is made of them, read ahead by several threads."""

import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import tree
from mae_pp_jax.data.decode import Unreadable
from mae_pp_jax.data.faults import Faults

_AHEAD = 3  # batches that are under way


class PictureFiles:
    """The files that folders, patterns and names stand for, one after another.

    A folder stands for all pictures in it and in the folders below, known by the ends of their names, in alphabetical
    order; a pattern for the files that match. Folders are walked anew each time, so that millions of names are never
    held at once.
    """

    def __init__(self, given: Sequence[str], key: str = "--images"):
        """Looks whether there are any.

        Args:
          given: folders, patterns such as `photos/**/*.jpg`, and files.
          key: what the user gave them with, for errors.

        Raises:
          UserError: one of them stands for no file.
        """
        self._given = tuple(given)
        for one in self._given:
            if next(_files(one), None) is None:
                raise UserError(f"{key}: {_nothing(one)}")

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(map(_files, self._given))

    def count(self) -> int:
        """How many there are; walks through all folders."""
        return sum(1 for _ in self)


def _files(given: str) -> Iterator[str]:
    matches = storage.matching(given)
    if len(matches) == 1 and storage.is_dir(matches[0]):
        return (f"{matches[0].rstrip('/')}/{name}" for name, reason in tree.walk(matches[0]) if not reason)
    return filter(storage.is_file, matches)


def _nothing(given: str) -> str:
    """Why there is no file."""
    matches = storage.matching(given)
    if len(matches) == 1 and storage.is_dir(matches[0]):
        return f"no picture in the folder {matches[0]} or below it ({', '.join(tree.EXTENSIONS[:6])} …)"
    return f"no file matches {given!r}; give a folder, a file or a pattern, quoted so that the shell leaves it alone"


def batches(
    names: Iterable[str],
    load: Callable[[bytes], dict[str, np.ndarray]],
    size: int,
    unreadable: Callable[[str, Exception], None],
) -> Iterator[tuple[list[str], dict[str, np.ndarray], int]]:
    """What is made of files, in batches of a fixed size; a few batches are read ahead.

    Args:
      names: of the files.
      load: content of a file → arrays of fixed shapes; raises `Unreadable`.
      size: of a batch.
      unreadable: called with a name and the reason, in order; may raise what ends the reading.

    Yields:
      (names of the files that could be read, at least one; name → array [size, …] of them, then zeros; how many files
      were looked at).
    """
    faults = Faults()

    def read(name: str) -> dict[str, np.ndarray] | Exception:
        try:
            example = load(storage.read_bytes(name))
            faults.warn(lambda: name)
            return example
        except (OSError, Unreadable) as error:
            return error

    rest, looked = iter(names), 0
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting: list[tuple[str, concurrent.futures.Future]] = []
        try:
            while True:
                wanted = itertools.islice(rest, _AHEAD * size - len(waiting))
                waiting += [(name, pool.submit(read, name)) for name in wanted]
                if not waiting:
                    return
                ready, waiting = waiting[:size], waiting[size:]
                good: dict[str, list] = {}
                done = []
                for name, future in ready:
                    if isinstance(example := future.result(), Exception):
                        unreadable(name, example)
                        continue
                    done.append(name)
                    for field, array in example.items():
                        good.setdefault(field, []).append(array)
                looked += len(ready)
                if done:
                    yield done, {field: _padded(arrays, size) for field, arrays in good.items()}, looked
                    looked = 0
        finally:
            pool.shutdown(cancel_futures=True)


def _padded(arrays: list[np.ndarray], size: int) -> np.ndarray:
    """Arrays of one shape as [size, …], with zeros after them."""
    out = np.zeros((size, *arrays[0].shape), arrays[0].dtype)
    out[: len(arrays)] = arrays
    return out
