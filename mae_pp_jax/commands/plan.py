"""`plan`: compiles a stage's train step for a slice of chips that is not at hand, and says what it needs there."""

import argparse
import pathlib

from mae_pp_jax.commands.arguments import overrides as parse_overrides
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import disk
from mae_pp_jax.planning import process, report, slices
from mae_pp_jax.stages import registry

DESCRIPTION = """Compiles the real train step of a config for a slice of TPUs on a machine that has none, and prints
whether it fits, what takes the memory, where the cycles go and how high utilisation can be. Nothing runs, no data is
read; the TPU compiler comes with the extra [tpu].

examples:
  python -m mae_pp_jax plan --config=configs/mae/in1k.py:size=L/16 --topology=v5e:8x8 --config.mesh.fsdp=8
  python -m mae_pp_jax plan --config=configs/mae/digits.py --topology=cpu:8

A slice is CHIP:SHAPE, chips along each side: v4:4x4x4, v5e:8x8, v5p:4x4x8, v6e:16x16, tpu7x:2x2x1; cpu:8 is eight
simulated devices. A config that does not fit is a result (exit code 0), said in the first line and by "fits" of
--json."""


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "plan",
        help="whether a config fits a slice of TPUs, and how fast it may be",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:args]", help="configs/STAGE/RECIPE.py[:name=value,…]")
    parser.add_argument("--topology", required=True, metavar="SLICE", help="such as v5p:4x4x8, v5e:8x8 or cpu:8")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there, as JSON")
    parser.set_defaults(run=run, takes_overrides=True)


def run(args, rest: list[str]) -> None:
    found = plan(args.config, args.topology, parse_overrides(rest), json_file=args.json)
    print("\n".join(report.lines(found)))


def plan(config: str, topology: str, overrides: dict[str, str] | None = None, *, json_file: str | None = None) -> dict:
    """What the train step of a config needs on a slice.

    Args:
      config: `configs/STAGE/RECIPE.py[:args]`.
      topology: the slice, such as `v5p:4x4x8`.
      overrides: dotted key → text, as on the command line.
      json_file: where to write the result too.

    Returns:
      The dict that `planning.measure.measure` describes.

    Raises:
      UserError: the config, the slice or their combination cannot work.
      RunStopped: the compiler died.
    """
    chosen = slices.parse(topology)
    resolved = registry.resolve(config_lib.load_file(config), overrides)
    found = process.compile_once(config_lib.to_dict(resolved), chosen)
    if json_file:
        disk.write_json(pathlib.Path(json_file), found)
    return found
