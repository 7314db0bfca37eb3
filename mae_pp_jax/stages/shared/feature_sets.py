"""Features of a checkpoint on a set of images: computed once, kept in RUN/features, found again by what made them.

`RUN/features/SET_STEP_HASH.npy` holds one row per record, `.json` beside it says of which checkpoint, records,
transform, pooling and size they are, which records could not be read, and the SHA-256 of the rows. A computation that
was stopped goes on at its last row.
"""

import contextlib
import dataclasses
import hashlib
import logging
import time

import jax
import numpy as np
import tqdm

from mae_pp_jax.core import checkpoint, console, partition, storage
from mae_pp_jax.core.errors import RunStopped, UserError
from mae_pp_jax.data import evals, fields, pipeline
from mae_pp_jax.data.evals import EvalConfig
from mae_pp_jax.data.faults import Faults
from mae_pp_jax.data.source import Subset
from mae_pp_jax.stages.shared import saved_encoder
from mae_pp_jax.stages.shared.saved_encoder import SavedEncoder

log = logging.getLogger(__name__)

VERSION = 1  # of what rows hold; another one makes other files
NOTE_SECONDS = 10.0  # between notes of how far a computation has come
LINE_SECONDS = 30.0  # between lines about it where there is no terminal
# The keys of an evaluation set that say what is measured, not how an image gets its pixels.
_NOT_PIXELS = {"data", "split", "classes", "labels", "logits", "evaluators"}


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of the records that could be read and have a label.

    Attributes:
      features: [images, width], float32 or float16, mapped from the file where no record is left out.
      labels: int32 [images].
      records: int64 [images], index of each in its source.
      unreadable: records left out because they could not be read.
      unlabelled: records left out because they have no label.
      mark: hash of what the features were made of.
    """

    features: np.ndarray
    labels: np.ndarray
    records: np.ndarray
    unreadable: int
    unlabelled: int
    mark: str


@dataclasses.dataclass(frozen=True)
class How:
    """How features are made of images.

    Attributes:
      image_size: (height, width) in pixels.
      pool: see `saved_encoder.load`.
      dtype: "float32" or "float16", as they are kept.
      batch: images at once, over all devices.
      threads: that read and decode, None for as many as suit the machine.
      max_unreadable: share of records that cannot be read above which it stops.
    """

    image_size: tuple[int, int]
    pool: str | None = None
    dtype: str = "float32"
    batch: int = 256
    threads: int | None = None
    max_unreadable: float = 0.1


def of(
    run: storage.Path,
    step: int,
    source: fields.Source,
    config: EvalConfig,
    how: How,
    *,
    name: str,
    mesh,
    place: storage.Path | None = None,
) -> FeatureSet:
    """Features of all labelled records of a source, from the file or computed now.

    Args:
      run: folder of the run.
      step: its checkpoint.
      source: the records, with labels.
      config: of the set, its transform.
      how: pooling and size.
      name: of the set, in file names and messages.
      mesh: the device mesh; one process.
      place: folder in which features are kept, in `features/`; None: the run's.

    Raises:
      UserError: no encoder, labels, space, or a pooling or size that does not fit.
      RunStopped: too many records cannot be read, or a feature is not finite.
    """
    labels = fields.labels(source)
    made = dict(
        version=VERSION,
        checkpoint_sha256=checkpoint.sha256(run, step),
        dataset=source.fingerprint,
        records=len(source),
        transform={key: value for key, value in dataclasses.asdict(config).items() if key not in _NOT_PIXELS},
        image_size=how.image_size,
        pool=how.pool,
        dtype=how.dtype,
    )
    mark = hashlib.sha256(storage.json_text(made).encode()).hexdigest()[:16]
    stem = (place or run) / "features" / f"{name}_{step}_{mark[:8]}"
    rows, facts = _stored(stem) or _computed(stem, made, run, source, config, how, name, mesh)
    readable = np.ones(len(source), bool)
    readable[facts["unreadable"]] = False
    kept = np.flatnonzero(readable & (labels >= 0))
    if not len(kept):
        raise UserError(f"data.name: no image of the {name} set can be read and has a label; use another split")
    unlabelled = int(np.sum(readable & (labels < 0)))
    features = rows if len(kept) == len(source) else rows[kept]
    return FeatureSet(features, labels[kept], kept, len(facts["unreadable"]), unlabelled, mark)


def _stored(stem: storage.Path) -> tuple[np.ndarray, dict] | None:
    """(rows, facts) of a finished computation; None if there is none, or it is damaged."""
    array, facts = _file(stem, ".npy"), _file(stem, ".json")
    if not storage.is_file(facts):
        return None
    with contextlib.suppress(UserError, OSError, ValueError, KeyError):
        found = storage.read_json(facts)
        if _sha256(array) == found["sha256"]:
            return np.load(array, mmap_mode="r"), found
    log.warning("%s has changed since it was written: computed again", array)
    storage.remove(facts)
    return None


def _computed(stem, made: dict, run, source, config, how: How, name: str, mesh) -> tuple[np.ndarray, dict]:
    storage.check_writable(stem.parent, "--workdir", folder=True)
    storage.make_folder(stem.parent)
    with storage.lock(_file(stem, ".lock"), f"the features of {name}"):
        if found := _stored(stem):  # of the process that was waited for
            return found
        encoder = saved_encoder.load(run, mesh, pool=how.pool, image_size=how.image_size)
        began, half, note = time.monotonic(), _file(stem, ".part.npy"), _file(stem, ".part.json")
        with storage.writing(half):
            unreadable = _fill(half, note, encoder, source, config, how, name, mesh)
        facts = {**made, "unreadable": unreadable, "seconds": time.monotonic() - began}
        storage.move(half, _file(stem, ".npy"))
        storage.write_json(_file(stem, ".json"), {**facts, "sha256": _sha256(_file(stem, ".npy"))})
        storage.remove(note)
    return _stored(stem)


def _begun(half: storage.Path, note: storage.Path, shape: tuple[int, int], dtype: str) -> tuple[np.memmap, dict]:
    """(rows, {done, unreadable}) of a computation that was stopped, or of a new one."""
    with contextlib.suppress(UserError, OSError, ValueError):
        rows, progress = np.load(half, mmap_mode="r+"), storage.read_json(note)
        if (rows.shape, rows.dtype) == (shape, np.dtype(dtype)):
            return rows, progress
    needed, free = int(np.prod(shape)) * np.dtype(dtype).itemsize, storage.free_space(half.parent)
    if free < needed:
        raise UserError(
            f"--workdir: no space left for features in {half.parent}: {needed:,} bytes are needed, {free:,} are free; "
            "free space, or use features.dtype=float16"
        )
    return np.lib.format.open_memmap(half, "w+", dtype, shape), dict(done=0, unreadable=[])


def _fill(half, note, encoder: SavedEncoder, source, config, how: How, name: str, mesh) -> list[int]:
    """Computes the rows that are not there yet, and notes now and then how far it has come; returns the unreadable."""
    width = jax.eval_shape(encoder.features, jax.ShapeDtypeStruct((1, *encoder.image_size, 3), np.uint8)).shape[1]
    rows, progress = _begun(half, note, (len(source), width), how.dtype)
    start, total, batch = progress["done"], len(source), -(-how.batch // mesh.size) * mesh.size
    faults, spec = Faults(), {"image": ((*encoder.image_size, 3), np.uint8)}
    batches = pipeline.eval_batches(
        Subset(source, np.arange(start, total)),
        lambda record: {"image": evals.crop(record["image"], config, encoder.image_size)},
        spec,
        global_batch=batch,
        threads=how.threads,
        max_unreadable=how.max_unreadable,
        faults=faults,
    )
    began = noted = told = time.monotonic()
    label = f"features of {name}"
    with (
        jax.set_mesh(mesh),
        tqdm.tqdm(total=total, initial=start, desc=label, unit=" images", disable=not console.on_terminal()) as bar,
    ):
        for found in batches if start < total else ():
            own = found["record"] + start
            stop = min(progress["done"] + batch, total)
            count = stop - progress["done"]
            images = partition.to_global({"image": found["image"]}, mesh)["image"]
            rows[progress["done"] : stop] = np.asarray(encoder.features(images))[:count]
            if not np.isfinite(rows[progress["done"] : stop]).all():
                raise RunStopped(
                    f"features of {source.describe(int(own[0]))} or of one of the {count} images from it on are not "
                    f"finite in {how.dtype}; are the weights?"
                )
            progress["unreadable"] += own[:count][found["unreadable"][:count] > 0].tolist()
            progress["done"] = stop
            bar.update(count)
            now = time.monotonic()
            if now - noted > NOTE_SECONDS:
                rows.flush()
                storage.write_json(note, progress)
                noted = now
            if now - told > LINE_SECONDS and not console.on_terminal():
                speed = (stop - start) / (now - began)
                left = console.clock((total - stop) / speed)
                log.info("%s: %s of %s images, %.0f images/s, %s left", label, f"{stop:,}", f"{total:,}", speed, left)
                told = now
    rows.flush()
    return progress["unreadable"]


def _file(stem: storage.Path, ending: str) -> storage.Path:
    return stem.with_name(stem.name + ending)


def _sha256(path: storage.Path) -> str:
    digest = hashlib.sha256()
    with storage.reading(path) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
