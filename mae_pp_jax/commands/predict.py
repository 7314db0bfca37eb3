"""`predict`: what a run says of new pictures."""

import argparse
import csv
import logging
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import tqdm

from mae_pp_jax.commands import answer_file, arguments, runs, saved_run
from mae_pp_jax.core import checkpoint, console, hardware, partition, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.partition import MeshConfig
from mae_pp_jax.data import picture_files, tree

log = logging.getLogger(__name__)

_NAMED = 10  # unreadable files named at the end

DESCRIPTION = """Answers for new pictures, by the newest checkpoint of a run: classes with their probabilities (classify, linear,
low_shot: the mean over its draws) or hashtags (wsp), the most probable first. Names and preprocessing are those of the
checkpoint; pictures are shown as its first evaluation set shows them.

examples:
  python -m mae_pp_jax predict --workdir=runs/finetune --images=photos --out=answers.csv
  python -m mae_pp_jax predict --workdir=runs/finetune --images 'holiday/**/*.jpg' portrait.png --top=1
  python -m mae_pp_jax predict --workdir=runs/mae_wsp --images=photos --out=hashtags.jsonl --top=20

FILE.csv has rows of file, class and probability; FILE.jsonl a line for each file, {"file", "answers": [{"class",
"probability"}, …]}; FILE.json is an array of the same. They grow while pictures are answered (an array: FILE.json.rows),
and the same command goes on where one was stopped. Files that cannot be read are named at the end."""


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "predict",
        help="answers for new pictures",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, metavar="RUN", help=arguments.RUN)
    arguments.add_images(parser)
    parser.add_argument("--out", metavar="FILE", help=f"{', '.join(answer_file.SUFFIXES)} (default: printed as CSV)")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="answers for a picture (default: 5)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="pictures at once (default: 64)")
    parser.set_defaults(run=run, takes_overrides=True)


def run(args, rest: list[str]) -> None:
    predict(args.workdir, args.images, args.out, top=args.top, batch=args.batch, overrides=arguments.overrides(rest))


def predict(
    workdir: str,
    images: str | Sequence[str],
    out: str | None = None,
    *,
    top: int = 5,
    batch: int = 64,
    overrides: dict[str, str] | None = None,
) -> int:
    """Answers for pictures, written to a file or printed.

    Args:
      workdir: folder of a run, a released name or a file of weights; see `runs.locate`.
      images: folders, patterns and files, or one of them; see `picture_files.PictureFiles`.
      out: the file, by its name .csv, .jsonl or .json; None: they are printed as CSV.
      top: answers for a picture.
      batch: pictures at once, over all devices.
      overrides: dotted key → text, in place of the run's own config.

    Returns:
      How many pictures were answered.

    Raises:
      UserError: no run there, or one that has no answers; no picture; none that can be read.
    """
    hardware.enable_compilation_cache()
    for name, value in (("--top", top), ("--batch", batch)):
        if value < 1:
            raise UserError(f"{name}: must be at least 1, got {value}")
    target = _target(out)
    files = picture_files.PictureFiles([images] if isinstance(images, str) else images)
    overrides = overrides or {}
    # A run's mesh is for the machine that trained it.
    mesh = None if any(key.startswith("mesh.") for key in overrides) else MeshConfig()
    saved = saved_run.load(runs.locate(workdir, "--workdir"), overrides, mesh=mesh)
    answers = saved.stage.answers(saved.meta.get("identity", {}), top)
    settings = dict(checkpoint=checkpoint.sha256(saved.folder, saved.step), top=top, overrides=overrides)
    params, faults = saved.parameters(), _Unreadable()
    sink = answer_file.AnswerFile(target, answers.columns, settings) if target else _Printed(answers.columns)
    rest = (name for name in files if name not in sink)
    total, number = files.count(), sink.answered
    shown = console.on_terminal() and (target or not sys.stdout.isatty())
    try:
        with tqdm.tqdm(total=total, initial=number, desc="predict", unit=" images", disable=not shown) as bar:
            for answered, looked in _answered(saved.mesh, answers, params, rest, batch, faults):
                sink.write(answered)
                number += len(answered)
                bar.update(looked)
        if not number:
            raise UserError(f"--images: none of the {total:,} files could be read ({faults.text()})")
        sink.finish()
    finally:
        sink.close()
    if target:
        print(f"{target}: answers for {number:,} pictures")
    if faults.number:
        log.warning("%s of %s files could not be read: %s", f"{faults.number:,}", f"{total:,}", faults.text())
    return number


def _target(out: str | None) -> storage.Path | None:
    if out is None:
        return None
    target = storage.path(out, "--out")
    if target.suffix not in answer_file.SUFFIXES:
        raise UserError(f"--out: {out} must end in {', '.join(answer_file.SUFFIXES)}")
    storage.check_writable(target, "--out")
    return target


def _answered(
    mesh: jax.sharding.Mesh, answers, params, names: Iterator[str], batch: int, faults: "_Unreadable"
) -> Iterator[tuple[list[answer_file.Answered], int]]:
    """(answers on the files of a batch that could be read, how many files were looked at) for one batch after another."""
    compute = jax.jit(answers.compute)
    size = -(-batch // mesh.size) * mesh.size
    with jax.set_mesh(mesh):
        for read, arrays, looked in picture_files.batches(names, answers.load, size, faults.add):
            values = jax.tree.map(np.asarray, compute(params, partition.to_global(arrays, mesh)))
            of_each = (jax.tree.map(lambda array, at=at: array[at], values) for at in range(len(read)))
            yield [(name, answers.tell(own)) for name, own in zip(read, of_each)], looked


class _Unreadable:
    """Counts the files that cannot be read, and keeps the first ones with the reason."""

    def __init__(self):
        self.number, self._first = 0, []

    def add(self, name: str, error: Exception) -> None:
        self.number += 1
        if len(self._first) < _NAMED:
            self._first.append(f"{tree.legible(name)} ({getattr(error, 'strerror', None) or error})")

    def text(self) -> str:
        return ", ".join(self._first) + (f" and {self.number - _NAMED:,} more" if self.number > _NAMED else "")


class _Printed:
    """Answers on stdout, as CSV."""

    answered = 0

    def __init__(self, columns: Sequence[str]):
        self._writer = csv.writer(sys.stdout, lineterminator="\n")
        self._writer.writerow(("file", *columns))

    def __contains__(self, name: str) -> bool:
        return False

    def write(self, answered: list[answer_file.Answered]) -> None:
        self._writer.writerows((tree.legible(name), *answer) for name, answers in answered for answer in answers)
        sys.stdout.flush()

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass
