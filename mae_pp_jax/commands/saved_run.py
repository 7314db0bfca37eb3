"""A run's newest checkpoint with the stage that it is of, for commands that read it."""

import dataclasses
from typing import Any

import jax

from mae_pp_jax.core import checkpoint, leaves, partition, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten, unflatten
from mae_pp_jax.core.partition import MeshConfig
from mae_pp_jax.core.stage import Stage
from mae_pp_jax.stages import registry


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A checkpoint of a run, whose parameters are not read yet.

    Attributes:
      folder: of the run.
      step: of the checkpoint.
      meta: its JSON part.
      stage: with the run's config; it has opened no data.
      mesh: where the parameters are to lie.
      rules: how they are split over it, a name of `partition.TABLES`.
    """

    folder: storage.Path
    step: int
    meta: dict[str, Any]
    stage: Stage
    mesh: jax.sharding.Mesh
    rules: str

    def parameters(self) -> dict:
        """Nested dict of the parameters on the mesh, of the running average where the run kept one.

        Raises:
          UserError: they are not those of the stage's model.
        """
        saved = checkpoint.weights(self.folder, self.step)
        shapes = flatten(jax.eval_shape(self.stage.init, jax.random.key(0)))
        checkpoint.check_shapes(saved, shapes, f"{self.folder}/checkpoints/{self.step}")
        axes = partition.axes_of(self.stage.parameter_axes(), shapes)
        placed = flatten(partition.shardings(unflatten(shapes), axes, self.rules, self.mesh))
        wanted = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed[path]) for path, leaf in shapes.items()
        }
        return unflatten(leaves.read(saved, wanted))


def load(folder: storage.Path, overrides: dict[str, str] | None = None, *, mesh: MeshConfig | None = None) -> SavedRun:
    """The newest undamaged checkpoint of a run.

    Args:
      folder: of the run.
      overrides: dotted key → text, in place of the run's own config.
      mesh: where its parameters are to lie; None: as the config says.

    Raises:
      UserError: no run there, or its config does not fit the overrides or this machine.
    """
    if not storage.is_file(folder / "config.json"):
        raise UserError(
            f"--workdir: {folder} is not a run (no config.json); give a folder that `train` wrote, a released name "
            "(convert --list shows them) or a file of weights"
        )
    config = registry.resolve(storage.read_json(folder / "config.json"), overrides, saved=True)
    step = checkpoint.find(folder, field="--workdir")
    meta = checkpoint.meta(folder, step)
    stage, mesh = registry.create(config.recalled(meta)), mesh or config.mesh
    made = partition.make_mesh(mesh)
    stage.reader = partition.reader(made)
    return SavedRun(folder, step, meta, stage, made, mesh.rules)
