"""Writes a checkpoint array by array and piece by piece, so that no parameter need fit into memory.

Orbax lets a type of leaf bring its own writer. Ours takes the pieces of a parameter one after another and stores each
as chunks of its own in the same zarr files that Orbax reads as arrays of any sharding.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from mae_pp_jax.core import checkpoint, storage
from mae_pp_jax.core.functional import unflatten

CHUNK_BYTES = 64 << 20  # what a host reads at least of a parameter of which it holds a shard


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A parameter that arrives in pieces.

    Attributes:
      shape: of the whole; what no piece covers is zero.
      piece: shape of one piece in the parameter's axes, (1, …) along axes that pieces divide.
      parts: reads (index into the whole, values of that part), one after another.
    """

    shape: tuple[int, ...]
    piece: tuple[int, ...]
    parts: Callable[[], Iterable[tuple[tuple, np.ndarray]]]


class _PieceWriter(ocp.type_handlers.NumpyHandler):
    """Saves `Pieces` as float32 zarr arrays; they are read back as any array."""

    async def serialize(self, values, infos, args=None):
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            store = await tensorstore.open(
                {
                    "driver": "zarr",
                    "kvstore": {"driver": "file", "path": f"{info.parent_dir}/{info.name}/"},
                    "metadata": {
                        "shape": value.shape,
                        "chunks": _chunks(value.piece),
                        "dtype": "<f4",
                        "compressor": None,
                        "fill_value": 0.0,
                    },
                    # Orbax takes an absent chunk for a damaged checkpoint, also one of zeros.
                    "store_data_equal_to_fill_value": True,
                },
                create=True,
            )
            for index, part in value.parts():
                await store[index].write(part)
        return []


def _chunks(piece: tuple[int, ...]) -> list[int]:
    """A piece halved along its longest axis until it has at most `CHUNK_BYTES`."""
    chunk = list(piece)
    while 4 * math.prod(chunk) > CHUNK_BYTES:
        longest = chunk.index(max(chunk))
        chunk[longest] = -(-chunk[longest] // 2)
    return chunk


def write_checkpoint(folder: storage.Path, parameters: Mapping[str, Pieces], meta: dict) -> None:
    """Writes `FOLDER/{params,meta,digest.json}` as `core.checkpoint` reads it, without a train state.

    Args:
      folder: the checkpoint's folder; must not exist.
      parameters: path → pieces.
      meta: the JSON part.
    """
    writer = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((Pieces, _PieceWriter())),
    )
    with ocp.Checkpointer(writer) as checkpointer:
        checkpointer.save(storage.absolute(folder / "params"), args=ocp.args.PyTreeSave(unflatten(parameters)))
    storage.make_folder(folder / "meta")
    storage.write_json(folder / "meta" / "metadata", meta)
    checkpoint.write_digest(folder)
