"""`evaluate`: measures the newest checkpoint of a run."""

import argparse
import json
import pathlib

import jax
import numpy as np

from mae_pp_jax.commands.arguments import overrides as parse_overrides
from mae_pp_jax.core import checkpoint, disk, hardware, hosts, partition
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten, unflatten
from mae_pp_jax.stages import registry

DESCRIPTION = """Evaluates the newest checkpoint of a run on its evaluation split; prints the metrics as JSON and writes
WORKDIR/evaluation_STEP.json.

examples:
  python -m mae_pp_jax evaluate --workdir=runs/demo/finetune_mae_wsp
  python -m mae_pp_jax evaluate --workdir=runs/maws_b16_ft --config.data.name=/photos --config.evals.test.split=test

--config.KEY=VALUE replaces a key of the run's config, such as the data that an imported model is measured on."""


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "evaluate",
        help="measure the newest checkpoint of a run",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a run")
    parser.add_argument("--evaluators", metavar="a,b", help="names of evaluators; all of the stage when not given")
    hosts.add_arguments(parser)
    parser.set_defaults(run=run, takes_overrides=True)


def run(args, rest: list[str]) -> None:
    names, overrides = args.evaluators.split(",") if args.evaluators else None, parse_overrides(rest)
    with hosts.together(args):
        found = evaluate(args.workdir, names, overrides)
        if hosts.first():
            print(json.dumps(found, indent=1))


def evaluate(workdir: str, names: list[str] | None = None, overrides: dict[str, str] | None = None) -> dict:
    """Metrics of the newest undamaged checkpoint, also written as JSON.

    Raises:
      UserError: no run there, or no evaluator of that name.
    """
    hardware.enable_compilation_cache()
    folder = pathlib.Path(workdir)
    if not (folder / "config.json").is_file():
        raise UserError(f"--workdir: {folder} is not a run (no config.json); give a folder that `train` wrote")
    config = registry.resolve(disk.read_json(folder / "config.json"), overrides)
    stage = registry.create(config)
    mesh = partition.make_mesh(config.mesh)
    stage.reader = partition.reader(mesh)
    evaluators = stage.evaluators()
    known = [e.name for e in evaluators]
    for name in names or ():
        if name not in known:
            raise UserError(f"--evaluators: {name} is not one of this stage's: {', '.join(known)}")
    step = checkpoint.find(folder, field="--workdir")
    items = checkpoint.shapes(folder, step)
    item = "ema" if "ema" in items else "params"
    shapes = flatten(jax.eval_shape(stage.init, jax.random.key(0)))
    checkpoint.check_shapes(items[item], shapes, f"{folder}/checkpoints/{step}")
    placed = partition.shardings(unflatten(shapes), shapes, config.mesh.rules, mesh)
    wanted = {
        path: jax.ShapeDtypeStruct(shapes[path].shape, shapes[path].dtype, sharding=sharding)
        for path, sharding in flatten(placed).items()
    }
    params = unflatten(checkpoint.read(folder, step, item, wanted))
    found = {"step": step}
    for evaluator in evaluators:
        if names is None or evaluator.name in names:
            values = evaluator.run(params, mesh)
            found |= {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
    if hosts.first():
        disk.write_json(folder / f"evaluation_{step}.json", found)
    return found
