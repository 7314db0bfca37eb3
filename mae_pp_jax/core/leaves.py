"""Where each leaf of a checkpoint lies, read one by one or into any sharding; references to leaves of other runs.

Reading waits for no other process: each reads what it needs, and may fail alone.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from mae_pp_jax.core import hosts, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten, unflatten

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array of a checkpoint.

    Attributes:
      run: folder of the run that the checkpoint is of.
      step: its step.
      item: the part of it: "params", "ema" or "train".
      path: slash path of the array in that part.
      shape, dtype: of the array.
    """

    run: storage.Path
    step: int
    item: str
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def folder(self) -> storage.Path:
        """The folder of the item."""
        return storage.absolute(self.run / "checkpoints" / str(self.step) / self.item)


def of_item(run: storage.Path, step: int, item: str) -> dict[str, Leaf]:
    """Path → leaf of an item of a checkpoint, empty where it has no such item; no array is read."""
    folder = storage.absolute(run / "checkpoints" / str(step) / item)
    if not storage.is_dir(folder):
        return {}
    tree = ocp.PyTreeCheckpointHandler().metadata(folder).tree
    return {p: Leaf(run, step, item, p, tuple(m.shape), np.dtype(m.dtype)) for p, m in flatten(tree).items()}


def read(leaves: Mapping[str, Leaf], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads some leaves, each straight into the sharding of its ShapeDtypeStruct.

    Args:
      leaves: path → leaf.
      wanted: path → ShapeDtypeStruct with sharding; other leaves are not read.
    """
    out, groups = {}, {}
    for path in wanted:
        groups.setdefault(leaves[path].folder, []).append(path)
    for folder, paths in groups.items():
        tree = unflatten({leaves[path].path: wanted[path] for path in paths})
        args = ocp.args.PyTreeRestore(
            item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
        )
        got = flatten(ocp.PyTreeCheckpointHandler().restore(folder, args=args))
        out |= {path: got[leaves[path].path] for path in paths}
    return out


def open_leaf(leaf: Leaf) -> tensorstore.TensorStore:
    """A leaf on storage, to be read in parts: `store[index].read().result()`."""
    name = leaf.path.replace("/", ".") + "/"
    if ocp.type_handlers.is_ocdbt_checkpoint(leaf.folder):
        kvstore = {"driver": "ocdbt", "base": f"file://{leaf.folder}/", "path": name}
    else:
        kvstore = {"driver": "file", "path": f"{leaf.folder}/{name}"}
    return tensorstore.open({"driver": "zarr", "kvstore": kvstore}, open=True, read=True).result()


def stored_pieces(leaf: Leaf) -> Iterator[np.ndarray]:
    """A leaf as numpy arrays, cut along its first axis into pieces of bounded size, as `hosts.pieces` gives arrays."""
    store = open_leaf(leaf)
    if not leaf.shape:
        yield np.asarray(store.read().result())
        return
    rows = max(1, hosts.PIECE_BYTES * leaf.shape[0] // max(1, int(np.prod(leaf.shape)) * leaf.dtype.itemsize))
    for start in range(0, leaf.shape[0], rows):
        yield np.asarray(store[start : min(start + rows, leaf.shape[0])].read().result())


def sha256(leaves: Mapping, pieces: Callable[..., Iterable[np.ndarray]]) -> str:
    """SHA-256 over path, dtype, shape and bytes of every leaf in the order of the paths.

    Args:
      leaves: path → array or `Leaf`.
      pieces: gives a leaf in pieces; with `hosts.pieces` all processes must take part.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(leaves.items()):
        digest.update(f"{path} {leaf.dtype} {tuple(leaf.shape)}\n".encode())
        for piece in pieces(leaf):
            digest.update(piece.tobytes())
    return digest.hexdigest()


def references(sources: Mapping[str, Leaf], params: Mapping[str, jax.Array]) -> list[dict]:
    """What the meta of a checkpoint says of weights that are not written again; all processes must take part.

    Args:
      sources: path → where the weight came from, unchanged.
      params: path → the weight.

    Returns:
      {run, step, sha256, leaves: {path: [item, path there]}} for each run and step.
    """
    groups: dict[tuple[str, int], dict[str, Leaf]] = {}
    for path, leaf in sources.items():
        groups.setdefault((str(storage.absolute(leaf.run)), leaf.step), {})[path] = leaf
    return [
        dict(
            run=run,
            step=step,
            sha256=sha256({path: params[path] for path in group}, hosts.pieces),
            leaves={path: [leaf.item, leaf.path] for path, leaf in group.items()},
        )
        for (run, step), group in groups.items()
    ]


def referred(entry: dict) -> dict[str, Leaf]:
    """Path → leaf of the checkpoint that an entry of `references` names."""
    run, step = storage.path(entry["run"]), entry["step"]
    items = {item: of_item(run, step, item) for item in {item for item, _ in entry["leaves"].values()}}
    return {path: items[item][there] for path, (item, there) in entry["leaves"].items()}


def verified(run: storage.Path, meta: Mapping) -> list[dict]:
    """The references in the meta of a run's checkpoint; what they name is there and has not changed.

    Raises:
      UserError: one of them does not, or is not there.
    """
    frozen = meta.get("frozen", [])
    for entry in frozen:
        where = f"{entry['run']}/checkpoints/{entry['step']}"
        try:
            same = sha256(referred(entry), stored_pieces) == entry["sha256"]
            problem = None if same else "has changed since"
        except (ValueError, OSError, KeyError) as error:  # what Orbax and tensorstore raise on files that are not there
            problem = "has changed since" if storage.is_dir(where) else "is gone"
            log.debug("%s cannot be read: %s", where, error)
        if problem:
            raise UserError(
                f"{run}: its frozen weights are those of {where}, which {problem}; restore that folder from a copy "
                "(runs with checkpoint.frozen=copy keep weights of their own)"
            )
    return frozen
