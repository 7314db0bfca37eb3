"""`bench`: times the train step of a config on this machine, and with --input what feeds it."""

import argparse
import sys

import jax
import tqdm

from mae_pp_jax.benchmarking import report, train_step
from mae_pp_jax.commands import runs
from mae_pp_jax.commands.arguments import overrides as parse_overrides
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import console, hosts, partition, storage
from mae_pp_jax.core import program as program_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.stages import registry

DESCRIPTION = """Times the train step of a config, the one that `train` runs, on random weights and a synthetic batch
that stays on the devices: images/s, share of the peak where that is known, step time, compile time, memory.
A recipe that declares its counts (config.declared) needs no data for that. With --input also the input alone, and
step and input together with the share of time in which the devices wait for a batch.

examples:
  python -m mae_pp_jax bench --config=configs/mae/in1k.py:size=S/16 --config.global_batch=8 --steps=10
  python -m mae_pp_jax bench --config=configs/mae/digits.py --input
  python -m mae_pp_jax bench --config=configs/wsp/folder.py:data=/path/to/photos --input --json=bench.json
  launch/local.sh -n 2 bench --config=configs/mae/digits.py        two processes on this machine"""


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "bench",
        help="time the train step of a config on this machine",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:args]", help="configs/STAGE/RECIPE.py[:name=value,…]")
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="steps to time, after a warm-up (30)")
    parser.add_argument("--input", action="store_true", help="also time the input alone, and step and input together")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there, as JSON")
    hosts.add_arguments(parser)
    parser.set_defaults(run=run, takes_overrides=True)


def run(args, rest: list[str]) -> None:
    # Not read from disk even where JAX_COMPILATION_CACHE_DIR is set, so that compile_seconds means something.
    jax.config.update("jax_enable_compilation_cache", False)
    overrides = parse_overrides(rest)
    with hosts.together(args):
        found = bench(args.config, overrides, steps=args.steps, with_input=args.input, json_file=args.json)
        if hosts.first():
            print("\n".join(report.lines(found)))


def bench(
    config: str,
    overrides: dict[str, str] | None = None,
    *,
    steps: int = 30,
    with_input: bool = False,
    json_file: str | None = None,
) -> dict:
    """Times a stage on this machine, or on all that are joined.

    Args:
      config: `configs/STAGE/RECIPE.py[:args]`.
      overrides: dotted key → text, as on the command line.
      steps: steps to time.
      with_input: whether the input is timed too, alone and together with the step.
      json_file: where to write the result too.

    Returns:
      The setting, `step` and, with the input, `input` and `together`; see `benchmarking.report`.

    Raises:
      UserError: the config does not fit, or `steps` is not positive.
    """
    if steps < 1:
        raise UserError(f"--steps: {steps} steps cannot be timed; give 1 or more, such as --steps=30")
    if json_file and hosts.first():
        storage.check_writable(storage.path(json_file, "--json"), "--json")
    resolved = runs.resolved(config_lib.load_file(config), overrides)
    stage = registry.create(resolved)
    program = program_lib.make_to_run(stage, partition.make_mesh(resolved.mesh))
    stage.reader = partition.reader(program.mesh)
    with tqdm.tqdm(total=steps, desc="compiling", unit=" steps", **_bar()) as bar:
        timed = train_step.TrainStep(program)
        bar.set_description("step alone")
        found = report.setting(program, config) | {"step": report.step(program, timed.time_alone(steps, bar.update))}
        if with_input:
            bar.reset(steps)
            bar.set_description("input alone")
            seconds = train_step.time_input(stage, steps, resolved.data.prefetch, bar.update)
            found["input"] = report.input_alone(program, seconds, train_step.cores())
            bar.reset(steps)
            bar.set_description("step and input")
            found["together"] = report.together(program, timed.time_fed(steps, bar.update))
    if json_file and hosts.first():
        storage.write_json(json_file, found, "--json")
    return found


def _bar() -> dict:
    return dict(disable=not console.on_terminal() or not hosts.first(), file=sys.stderr, dynamic_ncols=True)
