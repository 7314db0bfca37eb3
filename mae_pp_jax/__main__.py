"""`python -m mae_pp_jax VERB …`, also installed as `mae-pp`."""

import argparse
import sys

from mae_pp_jax.core import allocator, console
from mae_pp_jax.core.errors import Preempted, ProcessLost, RunStopped, UserError, line

DESCRIPTION = """MAE pre-pretraining → weakly supervised pretraining (WSP) → transfer, for Vision Transformers in JAX.

Start with `make demo`, or train one stage:
  python -m mae_pp_jax train --config=configs/mae/digits.py --workdir=runs/mae
Every verb explains itself: python -m mae_pp_jax VERB --help"""

EXITS = """Exit codes: 0 done; 2 the input is wrong (one line says what, and how to fix it); 3 the run stopped itself;
75 preempted after saving, or another process of the run is gone: the same command resumes."""

TRAINING = ("train", "pipeline", "bench")  # verbs that run train steps


def parser() -> argparse.ArgumentParser:
    """The command line, one subparser per verb."""
    from mae_pp_jax.commands import bench, convert, data, embed, evaluate, pipeline, plan, report, train

    top = _Parser(
        "mae_pp_jax", description=DESCRIPTION, epilog=EXITS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for command in (train, pipeline, evaluate, embed, convert, plan, bench, data, report):
        command.add_parser(verbs)
    return top


def command_line() -> int:
    """`main` in a process of its own, for which memory is set up first."""
    if sys.argv[1:2] and sys.argv[1] in TRAINING:
        allocator.restart_tuned()
    return main()


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    console.quiet_libraries()
    console.log_to_stderr()
    try:
        args, rest = parser().parse_known_args(argv)
        args.run(args, rest) if getattr(args, "takes_overrides", False) else args.run(_no_rest(args, rest))
        return 0
    except (UserError, RunStopped, Preempted, ProcessLost) as stop:
        print(line(stop), file=sys.stderr)
        return stop.exit_code


class _Parser(argparse.ArgumentParser):
    """A wrong command line ends like any other wrong input: with one line."""

    def error(self, message):
        raise UserError(f"{message}; see python -m {self.prog} --help")


def _no_rest(args, rest: list[str]):
    if rest:
        raise UserError(f"{args.verb}: unknown argument {rest[0]}; see python -m mae_pp_jax {args.verb} --help")
    return args


if __name__ == "__main__":
    sys.exit(command_line())
