"""`train`: trains or resumes one stage."""

import argparse
import os

from mae_pp_jax.commands import runs
from mae_pp_jax.commands.arguments import overrides as parse_overrides
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import hardware, hosts, loop, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import recognition
from mae_pp_jax.stages import registry

DESCRIPTION = """Trains one stage, or resumes it exactly where it was killed (the same command again).

examples:
  python -m mae_pp_jax train --config=configs/mae/digits.py --workdir=runs/mae
  python -m mae_pp_jax train --config=configs/wsp/digits.py --workdir=runs/mae_wsp --config.init_from.run=runs/mae
  python -m mae_pp_jax train --config=configs/mae/in1k.py:size=L/16 --workdir=runs/mae_l16 --config.mesh.fsdp=8

Any key of a config is set with --config.KEY=VALUE; --keys lists them with their values and meaning.
WORKDIR then holds config.json, log.txt, metrics.jsonl, tensorboard/, pictures/, checkpoints/STEP/ and result.json, and
while the run lasts lease/, which says whose it is: a second run there is refused."""


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "train",
        help="train or resume one stage",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:args]", help="configs/STAGE/RECIPE.py[:name=value,…]")
    parser.add_argument("--workdir", metavar="DIR", help="folder of this run")
    parser.add_argument("--keys", action="store_true", help="list every key of this config and leave")
    hosts.add_arguments(parser)
    parser.set_defaults(run=run, takes_overrides=True)


def run(args, rest: list[str]) -> None:
    overrides = parse_overrides(rest)
    if args.keys:
        mapping = config_lib.load_file(args.config)
        values = config_lib.to_dict(runs.resolved(mapping, overrides))
        print("\n".join(config_lib.describe(registry.stage_class(mapping).Config, values)))
        return
    if not args.workdir:
        raise UserError("--workdir: give the folder of the run, such as --workdir=runs/mae")
    with hosts.together(args):
        train(args.config, args.workdir, overrides)


def train(config: str, workdir: str | os.PathLike, overrides: dict[str, str] | None = None) -> dict:
    """Trains or resumes a stage.

    Args:
      config: `configs/STAGE/RECIPE.py[:args]`.
      workdir: folder of the run.
      overrides: dotted key → text, as on the command line.

    Returns:
      The content of `result.json`.
    """
    folder = storage.path(workdir)
    recognition.refuse_dataset(folder)
    hardware.enable_compilation_cache()
    resolved = runs.resolved(config_lib.load_file(config), overrides, workdir=folder)
    return loop.run(registry.create(resolved, runs.locate), folder)
