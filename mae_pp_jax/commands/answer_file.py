"""Files of answers, written row by row: .csv, .jsonl, or .json, which is an array once all answers are there.

While a file is not complete, `FILE.unfinished` stands beside it and says what it answers with. A process that was killed
goes on: what it wrote last for a picture may be cut and is answered again, the rest stays. Memory does not grow with the
number of answers, but for 8 bytes for each picture that an earlier process has answered.
"""

import csv
import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import tree

SUFFIXES = (".csv", ".jsonl", ".json")

Answered = tuple[str, list[tuple]]  # name of a file, its answers


class AnswerFile:
    """A file of answers that is being written.

    Attributes:
      answered: how many pictures an earlier process has answered.
    """

    def __init__(self, target: storage.Path, columns: Sequence[str], settings: dict):
        """Begins the file, or goes on with one that is not complete.

        Args:
          target: the file.
          columns: what the values of an answer are called.
          settings: what the answers depend on, JSON.

        Raises:
          UserError: the file cannot be written, or holds unfinished answers by other settings.
        """
        self._target, self._columns = target, tuple(columns)
        self._note = target.with_name(target.name + ".unfinished")
        self._rows = target.with_name(target.name + ".rows") if target.suffix == ".json" else target
        self._done = np.zeros(0, np.uint64)
        with storage.writing(target, "--out"):
            storage.make_folder(target.parent)
            if storage.is_file(self._note):
                self._check(settings)
                if storage.is_file(self._rows):
                    self._done = np.sort(np.fromiter(self._keep_whole(), np.uint64))
            else:
                storage.remove(self._rows)  # of a run that is finished; before the note, which would make it unfinished
            storage.write_json(self._note, settings, "--out")
            new = not storage.is_file(self._rows)
            self._file = storage.appending(self._rows)
            if new:
                self._file.write(self._head())
                self._file.flush()
        self.answered = len(self._done)
        self._empty = not self.answered

    def __contains__(self, name: str) -> bool:
        mark = _mark(name)
        at = int(np.searchsorted(self._done, mark))
        return at < len(self._done) and self._done[at] == mark

    def write(self, answered: Iterable[Answered]) -> None:
        """Adds the answers on some pictures."""
        self._empty = False
        with storage.writing(self._target, "--out"):
            self._file.write("".join(self._text(tree.legible(name), answers) for name, answers in answered))
            self._file.flush()

    def finish(self) -> None:
        """Completes the file."""
        with storage.writing(self._target, "--out"):
            self._file.close()
            if self._rows != self._target:
                self._make_array()
            storage.remove(self._note)

    def close(self) -> None:
        """Leaves the file as it is, for a later process to go on with, or removes it where nothing was answered."""
        self._file.close()
        if self._empty:
            storage.remove(self._rows)
            storage.remove(self._note)

    def _check(self, settings: dict) -> None:
        before = storage.read_json(self._note)
        if changed := [
            f"{key} was {before.get(key)}, is {settings[key]}" for key in settings if settings[key] != before.get(key)
        ]:
            raise UserError(
                f"--out: {self._target} holds unfinished answers by other settings ({'; '.join(changed)}); finish those, "
                f"or remove {self._note.name} beside it to begin again, or give another file"
            )

    def _head(self) -> str:
        return _line(("file", *self._columns)) if self._target.suffix == ".csv" else ""

    def _text(self, name: str, answers: list[tuple]) -> str:
        if self._target.suffix == ".csv":
            return "".join(_line((name, *answer)) for answer in answers)
        told = [dict(zip(self._columns, answer, strict=True)) for answer in answers]
        return storage.json_text(dict(file=name, answers=told)) + "\n"

    def _keep_whole(self) -> Iterator[int]:
        """Leaves what is complete in the file of rows, and gives the marks of the pictures it answers."""
        kept = self._rows.with_name(self._rows.name + ".kept")
        with storage.filling(kept) as out:
            out.write(self._head().encode())
            for name, text in self._whole():
                out.write(text.encode())
                yield _mark(name)
        storage.move(kept, self._rows)

    def _whole(self) -> Iterator[tuple[str, str]]:
        """(name, text) of each picture that is answered completely."""
        with storage.reading(self._rows) as content:
            lines = io.TextIOWrapper(content, "utf-8", errors="replace", newline="")
            if self._target.suffix == ".csv":
                last = None
                for name, own in itertools.groupby(self._whole_rows(lines), key=lambda row: row[0]):
                    if last:
                        yield last
                    last = name, "".join(map(_line, own))  # which may lack rows
                return
            for line in lines:
                if not line.endswith("\n"):  # where the process was killed
                    return
                yield json.loads(line)["file"], line

    def _whole_rows(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """The rows below the head, without a last one that is cut."""
        reader, row = csv.reader(lines), None
        next(reader, None)
        for following in reader:
            if row:
                yield row
            row = following
        # A row that ends within quotes has fewer values, one that ends elsewhere no end of line.
        if row and len(row) == 1 + len(self._columns) and _last_byte(self._rows) == b"\n":
            yield row

    def _make_array(self) -> None:
        whole = self._target.with_name(self._target.name + ".tmp")
        with storage.reading(self._rows) as rows, storage.filling(whole) as out:
            before = b"[\n"
            for line in rows:
                out.write(before + line.rstrip(b"\n"))
                before = b",\n"
            out.write(b"\n]\n" if before != b"[\n" else b"[]\n")
        storage.move(whole, self._target)
        storage.remove(self._rows)


def _last_byte(path: storage.Path) -> bytes:
    with storage.reading(path) as content:
        content.seek(max(0, storage.size(path) - 1))
        return content.read(1)


def _line(values: Iterable) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _mark(name: str) -> np.uint64:
    """A number for a file name, by which it is known again."""
    return np.frombuffer(hashlib.blake2b(tree.legible(name).encode(), digest_size=8).digest(), np.uint64)[0]
