"""Checkpoints of a run through orbax: `FOLDER/STEP/{params,train,ema,meta}`, asynchronous, atomic, verified.

`params` (and `ema` when there is one) stand apart from the rest of the train state, so that the next stage reads
weights without optimizer state. Frozen weights may lie in the checkpoint of the run that they came from instead: `meta`
then says which one, with their SHA-256 (`weights` follows such references). Orbax writes into a temporary folder and
renames it when complete; just before that, size and CRC-32 of every file are noted in `STEP/digest.json`, as array
storage alone does not notice a flipped byte.
"""

import contextlib
import hashlib
import logging
import zlib
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp

from mae_pp_jax.core import hosts, leaves, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten, unflatten
from mae_pp_jax.core.leaves import Leaf
from mae_pp_jax.core.state import TrainState

log = logging.getLogger(__name__)

DIGEST = "digest.json"
# One process reads all files to verify them: beyond this size only their lengths are compared.
CHECKSUM_LIMIT_BYTES = 4 << 30
SPACE_FOR_INDEXES = 1 << 20  # what a checkpoint takes on disk besides its arrays


def steps(folder: storage.Path) -> list[int]:
    """Steps of the complete checkpoints in a folder, ascending."""
    return sorted(int(name) for name in storage.names(folder) if name.isdigit() and storage.is_dir(folder / name))


class Checkpoints:
    """The checkpoints of one run; the newest `keep` stay."""

    def __init__(self, folder: storage.Path, keep: int, still_owned: Callable[[], None]):
        """Removes what a run that was killed while saving left half-written.

        Args:
          folder: of the checkpoints.
          keep: how many stay.
          still_owned: raises `RunStopped` when another process has taken the run's folder over.

        Raises:
          UserError: the folder cannot be written.
        """
        self.folder = folder
        self._still_owned = still_owned
        self._saving: int | None = None
        for half in _half_written(folder) if hosts.first() else ():
            log.warning("checkpoint %s is not complete, its run ended while writing it: removed", half)
        with storage.writing(folder):
            self._manager = ocp.CheckpointManager(
                storage.absolute(folder),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=True,
                    # Called when all files are written and before the folder gets its final name.
                    async_options=ocp.options.AsyncOptions(post_finalization_callback=self._note_digest),
                ),
            )

    def save(self, step: int, state: TrainState, meta: dict) -> None:
        """Starts writing; arrays are copied off the devices before this returns, files are written meanwhile.

        Raises:
          UserError: the disk is full or cannot be written (also for the write before this one).
          RunStopped: the folder belongs to another process by now.
        """
        self._still_owned()
        self.wait()
        elsewhere = {path for entry in meta.get("frozen", ()) for path in entry["leaves"]}
        params = unflatten({path: leaf for path, leaf in flatten(state.params).items() if path not in elsewhere})
        parts = dict(params=params, train=_named(_train_part(state)))
        if state.ema is not None:
            parts["ema"] = state.ema
        self._check_space(parts)
        self._saving = step
        with self._all_or_nothing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    meta=ocp.args.JsonSave(meta),
                    **{item: ocp.args.StandardSave(tree) for item, tree in parts.items()},
                ),
            )

    def wait(self) -> None:
        """Returns when the last save is on disk, on all processes."""
        with self._all_or_nothing():
            self._manager.wait_until_finished()
        hosts.barrier()

    def _check_space(self, parts: dict) -> None:
        """Refuses before anything is written; a disk that fills up half-way is noticed by many processes at once."""
        if not hosts.first():
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(parts)) + SPACE_FOR_INDEXES
        free = storage.free_space(self.folder)
        if free < needed:
            raise UserError(
                f"--workdir: no space left for a checkpoint in {self.folder}: it needs {needed:,} bytes, {free:,} are "
                "free; free space, then the same command goes on from the last checkpoint"
            )

    @contextlib.contextmanager
    def _all_or_nothing(self):
        """Removes what a failed save has written so far."""
        try:
            with storage.writing(self.folder):
                yield
        except Exception:
            if hosts.first():
                self._still_owned()
                for half in _half_written(self.folder):
                    storage.remove(half)
            raise

    def _note_digest(self) -> None:
        if hosts.first():
            (half,) = (path for path in _half_written(self.folder) if path.name.startswith(f"{self._saving}."))
            write_digest(half)

    def restore(self, like: TrainState, revision: str) -> tuple[TrainState, dict] | None:
        """The newest readable state and its meta, or None where the folder holds no checkpoint; the same everywhere.

        A damaged checkpoint is passed over with a warning and the one before is used; the damaged one is then moved to
        `damaged_checkpoints/` beside the folder. While there is no good one, nothing is moved.

        Args:
          like: a state of ShapeDtypeStructs with shardings; they may belong to another mesh than the saved one.
          revision: of the code that restores, for errors.

        Raises:
          UserError: there are checkpoints, but none is readable, or the state is not that of this run's model and
            optimizer, or the run that a frozen part came from is gone or has changed.
        """
        run = self.folder.parent
        found = hosts.from_first(lambda: steps(self.folder))
        for index, step in reversed(list(enumerate(found))):
            looked = hosts.from_first(lambda at=step: _look(run, at))
            problem, restored = looked["problem"], None
            if problem is None:
                problem, restored = _attempt(run, step, looked["meta"], like, revision)
                # Storage may fail one process alone; then none goes on from here.
                problem = next(filter(None, hosts.everyone(problem)), None)
            if problem is None:
                self._set_aside(found[index + 1 :])
                return restored, looked["meta"]
            log.warning("checkpoint %s/%d is damaged (%s): using the one before", self.folder, step, problem)
        if found:
            raise UserError(
                f"--workdir: none of the checkpoints in {self.folder} can be read ({', '.join(map(str, found))}, all "
                "damaged); restore one of them from a copy, or start again in another folder"
            )
        return None

    def _set_aside(self, damaged: list[int]) -> None:
        if hosts.first():
            aside = self.folder.parent / "damaged_checkpoints"
            for step in damaged:
                storage.remove(aside / str(step))
                with storage.writing(aside):
                    storage.make_folder(aside)
                    storage.move(self.folder / str(step), aside / str(step))
        hosts.barrier()
        self._manager.reload()

    def close(self) -> None:
        with self._all_or_nothing():
            self._manager.close()


def find(run: storage.Path, step: str = "last", field: str = "config.init_from") -> int:
    """The step of a run's checkpoint to read weights from.

    Args:
      run: folder of a run (the one that holds `checkpoints/`).
      step: "last" (the newest undamaged) or a number.
      field: what names the run and the step, for errors.

    Raises:
      UserError: no such run or step, or it is damaged.
    """
    folder = run / "checkpoints"
    found = hosts.from_first(lambda: steps(folder))
    if not found:
        raise UserError(f"{field}: {run} holds no checkpoint (expected {folder}/STEP); give the folder of a run")
    if step != "last":
        if not step.isdigit() or int(step) not in found:
            raise UserError(f"{field}: {run} has no checkpoint {step}; it has {', '.join(map(str, found))}")
        found = [int(step)]
    for candidate in reversed(found):
        problem = hosts.from_first(lambda at=folder / str(candidate): _damage(at))
        if problem is None:
            return candidate
        log.warning("checkpoint %s/%d is damaged (%s): skipped", folder, candidate, problem)
    raise UserError(f"{field}: {run} has no undamaged checkpoint among {', '.join(map(str, found))}; give another run")


def meta(run: storage.Path, step: int) -> dict:
    """The JSON part of a checkpoint: config, lineage, code revisions, dataset, where frozen weights lie."""
    return hosts.from_first(lambda: _meta(run, step))


def _meta(run: storage.Path, step: int) -> dict:
    return storage.read_json(run / "checkpoints" / str(step) / "meta" / "metadata")


def imported_from(run: storage.Path, step: int) -> dict:
    """The lineage record of imported weights as they came (file, format …), or {} for a run that was trained."""
    return import_record(meta(run, step))


def import_record(meta: Mapping) -> dict:
    """The same of the JSON part of a checkpoint."""
    lineage = meta.get("lineage", ())
    return lineage[0] if len(lineage) == 1 and "format" in lineage[0] else {}


def weights(run: storage.Path, step: int, *, average: bool = True) -> dict[str, Leaf]:
    """Path → where each weight of a checkpoint lies, wherever that is; no array is read.

    Args:
      run: folder of a run.
      step: step of the checkpoint.
      average: whether to take the running average (`ema`) where there is one, as it is what the run evaluated.

    Raises:
      UserError: the run that frozen weights came from is gone or has changed.
    """
    frozen = hosts.from_first(lambda: leaves.verified(run, _meta(run, step)))
    return _weights(run, step, frozen, average)


def _weights(run: storage.Path, step: int, frozen: Iterable[dict], average: bool) -> dict[str, Leaf]:
    found = leaves.of_item(run, step, "params")
    for entry in frozen:
        found |= leaves.referred(entry)
    return found | (leaves.of_item(run, step, "ema") if average else {})


def sha256(run: storage.Path, step: int) -> str:
    """SHA-256 of a checkpoint's digest, which names size and checksum of each of its files."""
    return hashlib.sha256(storage.read_bytes(run / "checkpoints" / str(step) / DIGEST)).hexdigest()


def weights_sha256(run: storage.Path, step: int, found: Mapping[str, Leaf]) -> str:
    """SHA-256 of `weights` as `result.json` has it: from there for the step that it is of, else computed."""

    def known() -> str:
        result = storage.read_json(run / "result.json") if storage.is_file(run / "result.json") else {}
        if result.get("step") == step and result.get("params_sha256"):
            return result["params_sha256"]
        return leaves.sha256(found, leaves.stored_pieces)

    return hosts.from_first(known)


def check_shapes(saved: dict, wanted: dict, where: str) -> None:
    """Raises `UserError` unless a checkpoint's parameters are those of this run's model."""
    for path in sorted(set(saved) | set(wanted)):
        a = tuple(saved[path].shape) if path in saved else "absent"
        b = tuple(wanted[path].shape) if path in wanted else "absent"
        if a != b:
            raise UserError(
                f"{where}: parameter {path} is {a} there and {b} in this run's model; "
                "use the config it was trained with, or another --workdir"
            )


def _look(run: storage.Path, step: int) -> dict:
    """{problem: what is damaged, or None; meta: JSON part} of a checkpoint, as process 0 finds it for all.

    Raises:
      UserError: the run that frozen weights came from is gone or has changed.
    """
    folder = run / "checkpoints" / str(step)
    if problem := _damage(folder):
        return dict(problem=problem, meta=None)
    try:
        found = _meta(run, step)
    except (OSError, UserError) as error:
        return dict(problem=str(error), meta=None)
    leaves.verified(run, found)
    return dict(problem=None, meta=found)


def _attempt(run: storage.Path, step: int, found: dict, like: TrainState, revision: str):
    """(None, state) of a checkpoint, or (why this process cannot read it, None)."""
    try:
        return None, _read_state(run, step, found, like, revision)
    except (ValueError, OSError, KeyError) as error:  # what Orbax and tensorstore raise on bad files
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}", None


def _read_state(run: storage.Path, step: int, found: dict, like: TrainState, revision: str) -> TrainState:
    where = f"{run / 'checkpoints'}/{step}"
    params = _weights(run, step, found.get("frozen", ()), average=False)
    check_shapes(params, flatten(like.params), where)
    train_like = _train_part(like)
    saved, wanted = leaves.of_item(run, step, "train"), flatten(_named(train_like))
    sums = {path for path in {*saved, *wanted} if path.startswith(("metrics/", "counts/"))}
    if changed := _differences(saved, wanted, ignored=sums):
        raise UserError(
            f"{where}: the optimizer or the code has changed since this run was started ({changed}; code "
            f"{found.get('revision')}, now {revision}); go on with the config and code it was started with, or start a "
            f"new run with config.init_from.run={run}"
        )
    if new := sorted(sums - set(saved)):
        log.info("%s: %s: not there yet, begin at 0", where, ", ".join(new))
    if gone := sorted(sums - set(wanted)):
        log.info("%s: %s: not known any more, left out", where, ", ".join(gone))
    got = leaves.read(saved, {path: leaf for path, leaf in wanted.items() if path in saved})
    got |= {path: _zeros(wanted[path]) for path in new}
    train = jax.tree_util.tree_map_with_path(lambda path, _: got[_name(path)], train_like)
    ema = None
    if like.ema is not None:
        ema = unflatten(leaves.read(leaves.of_item(run, step, "ema"), flatten(like.ema)))
    return TrainState(params=unflatten(leaves.read(params, flatten(like.params))), ema=ema, **train)


def _differences(saved: Mapping[str, Leaf], wanted: Mapping, ignored: set[str]) -> str:
    """The first leaf that is not the same in both, in words; empty where all are."""
    for path in sorted({*saved, *wanted} - ignored):
        a, b = (f"{side[path].dtype}{list(side[path].shape)}" if path in side else "absent" for side in (saved, wanted))
        if a != b:
            return f"{path} was {a}, is {b}"
    return ""


def _zeros(like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.make_array_from_callback(like.shape, like.sharding, lambda _: np.zeros(like.shape, like.dtype))


def _train_part(state: TrainState) -> dict:
    names = ("step", "opt_state", "rng", "metrics", "counts", "bad_step")
    return {name: getattr(state, name) for name in names}


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named(tree) -> dict:
    """Optimizer states are named tuples: stored as nested dicts, they read without the code that made them."""
    return unflatten({_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)})


def _half_written(folder: storage.Path) -> list[storage.Path]:
    return [folder / name for name in storage.names(folder) if ".orbax-checkpoint-tmp" in name]


def _crc(path: storage.Path) -> int:
    value = 0
    with storage.reading(path) as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def write_digest(folder: storage.Path) -> None:
    """Notes size and CRC-32 of every file of a complete checkpoint in its `digest.json`."""
    # The files of all items; what stands beside them is orbax's own note of when it wrote, which it still changes.
    sizes = {name: storage.size(folder / name) for name in storage.files(folder) if "/" in name}
    small = sum(sizes.values()) <= CHECKSUM_LIMIT_BYTES
    digest = {name: [size, _crc(folder / name) if small else None] for name, size in sizes.items()}
    storage.write_json(folder / DIGEST, digest)


def _damage(folder: storage.Path) -> str | None:
    """What is wrong with a checkpoint's files against their digest, or None."""
    try:
        digest = storage.read_json(folder / DIGEST)
    except (OSError, UserError):
        return f"{DIGEST} is not readable"
    for name, (size, crc) in digest.items():
        path = folder / name
        if not storage.is_file(path):
            return f"{name} is missing"
        if storage.size(path) != size:
            return f"{name} has {storage.size(path)} bytes instead of {size}"
        if crc is not None and _crc(path) != crc:
            return f"{name} has changed since it was written"
    return None
