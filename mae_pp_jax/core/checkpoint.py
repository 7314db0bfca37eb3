"""Checkpoints of a run through orbax: `FOLDER/STEP/{params,train,ema,meta}`, asynchronous, atomic, verified.

`params` (and `ema` when there is one) stand apart from the rest of the train state, so that the next stage reads
weights without optimizer state. Orbax writes into a temporary folder and renames it when complete; just before that,
size and CRC-32 of every file are noted in `STEP/digest.json`, as array storage alone does not notice a flipped byte.
"""

import contextlib
import logging
import zlib
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp

from mae_pp_jax.core import hosts, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten, unflatten
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
        self._check_space(state)
        self._saving = step
        with self._all_or_nothing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    train=ocp.args.StandardSave(_named(_train_part(state))),
                    meta=ocp.args.JsonSave(meta),
                    **({} if state.ema is None else {"ema": ocp.args.StandardSave(state.ema)}),
                ),
            )

    def wait(self) -> None:
        """Returns when the last save is on disk, on all processes."""
        with self._all_or_nothing():
            self._manager.wait_until_finished()
        hosts.barrier()

    def _check_space(self, state: TrainState) -> None:
        """Refuses before anything is written; a disk that fills up half-way is noticed too, but by many at once."""
        if not hosts.first():
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + SPACE_FOR_INDEXES
        free = storage.free_space(self.folder)
        if free < needed:
            raise UserError(
                f"--workdir: no space left for a checkpoint in {self.folder}: it needs {needed:,} bytes, {free:,} are "
                "free; free space, then the same command goes on from the last checkpoint"
            )

    @contextlib.contextmanager
    def _all_or_nothing(self):
        """What a save that failed has written so far is removed."""
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

    def restore(self, like: TrainState) -> tuple[TrainState, dict] | None:
        """The newest readable state and its meta, or None where the folder holds no checkpoint.

        A damaged checkpoint is passed over with a warning and the one before is used; the damaged one is then moved to
        `damaged_checkpoints/` beside the folder. While there is no good one, nothing is moved.

        Args:
          like: a state of ShapeDtypeStructs with shardings; they may belong to another mesh than the saved one.

        Raises:
          UserError: there are checkpoints, but none is readable or their shapes are not those of this run.
        """
        found = hosts.from_first(lambda: steps(self.folder))
        for index, step in reversed(list(enumerate(found))):
            problem = hosts.from_first(lambda at=self.folder / str(step): _damage(at))
            if problem is None:
                check_shapes(shapes(self.folder.parent, step)["params"], flatten(like.params), f"{self.folder}/{step}")
                try:
                    restored = self._read(step, like)
                except (ValueError, OSError, KeyError) as error:  # what orbax and tensorstore raise on bad files
                    problem = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                else:
                    self._set_aside(found[index + 1 :])
                    return restored
            log.warning("checkpoint %s/%d is damaged (%s): using the one before", self.folder, step, problem)
        if found:
            raise UserError(
                f"--workdir: none of the checkpoints in {self.folder} can be read ({', '.join(map(str, found))}, all "
                "damaged); restore one of them from a copy, or start again in another folder"
            )
        return None

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        train_like = _train_part(like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(like.params),
                train=ocp.args.StandardRestore(_named(train_like)),
                meta=ocp.args.JsonRestore(),
                **({} if like.ema is None else {"ema": ocp.args.StandardRestore(like.ema)}),
            ),
        )
        leaves = flatten(restored["train"])
        train = jax.tree_util.tree_map_with_path(lambda path, _: leaves[_name(path)], train_like)
        return TrainState(params=restored["params"], ema=restored.get("ema"), **train), restored["meta"]

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
    """The JSON part of a checkpoint: config, lineage, code revision, dataset."""
    return hosts.from_first(lambda: storage.read_json(run / "checkpoints" / str(step) / "meta" / "metadata"))


def imported_from(run: storage.Path, step: int) -> dict:
    """The lineage record of imported weights as they came (file, format …), or {} for a run that was trained."""
    lineage = meta(run, step)["lineage"]
    return lineage[0] if len(lineage) == 1 and "format" in lineage[0] else {}


def shapes(run: storage.Path, step: int) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Item ("params", perhaps "ema") → path → shape and dtype, without reading arrays."""
    folder = storage.absolute(run / "checkpoints" / str(step))
    out, reader = {}, ocp.PyTreeCheckpointHandler()
    for item in ("params", "ema"):
        if storage.is_dir(folder / item):
            tree = reader.metadata(folder / item).tree
            out[item] = {p: jax.ShapeDtypeStruct(m.shape, m.dtype) for p, m in flatten(tree).items()}
    return out


def read(run: storage.Path, step: int, item: str, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads some leaves of an item, each straight into the sharding of its ShapeDtypeStruct.

    Args:
      run: folder of a run.
      step: step of the checkpoint.
      item: "params" or "ema".
      wanted: path → ShapeDtypeStruct with sharding; other leaves are not read.
    """
    folder = storage.absolute(run / "checkpoints" / str(step) / item)
    tree = unflatten(wanted)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restore_args = ocp.checkpoint_utils.construct_restore_args(tree)
        got = reader.restore(
            folder, args=ocp.args.PyTreeRestore(item=tree, restore_args=restore_args, partial_restore=True)
        )
    return flatten(got)


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
