"""`python -m mae_pp_jax VERB …`, also installed as `mae-pp`."""

import argparse
import contextlib
import sys
import traceback

from mae_pp_jax.core import allocator, console, failures, storage
from mae_pp_jax.core.errors import UserError, line

DESCRIPTION = """MAE pre-pretraining → weakly supervised pretraining (WSP) → transfer, for Vision Transformers in JAX.

Start with `make demo`, or train one stage:
  python -m mae_pp_jax train --config=configs/mae/digits.py --workdir=runs/mae
Every verb explains itself: python -m mae_pp_jax VERB --help"""

EXITS = """Exit codes: 0 done; 2 the input is wrong (one line says what, and how to fix it); 3 the run stopped itself (a loss
that is not finite, unreadable images, out of memory); 70 an unforeseen error (one line says where its trace is);
75 preempted after saving, or another process of the run is gone: the same command resumes; 130 Ctrl-C, after saving
when a step was done; 141 nobody reads the output any more."""

TRACE = "--trace"
NOBODY_READS = 141  # as shells have it for SIGPIPE
TRAINING = ("train", "pipeline", "bench")  # verbs that run train steps


def parser() -> argparse.ArgumentParser:
    """The command line, one subparser per verb."""
    from mae_pp_jax.commands import bench, convert, data, embed, evaluate, pipeline, plan, predict, report, train

    top = _Parser(
        "mae_pp_jax", description=DESCRIPTION, epilog=EXITS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # Taken out by `main`, before or after the verb.
    top.add_argument(TRACE, action="store_true", help="print the full trace of an error")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for command in (train, pipeline, evaluate, predict, embed, convert, plan, bench, data, report):
        command.add_parser(verbs)
    return top


def command_line() -> int:
    """`main` in a process of its own, for which memory is set up first."""
    if next((argument for argument in sys.argv[1:] if argument != TRACE), None) in TRAINING:
        allocator.restart_tuned()
    return main()


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code; an exception of any kind becomes one line."""
    given = sys.argv[1:] if argv is None else argv
    console.quiet_libraries()
    console.replace_unprintable()
    console.log_to_stderr()
    try:
        storage.ensure_home()
        args, rest = parser().parse_known_args([argument for argument in given if argument != TRACE])
        args.run(args, rest) if getattr(args, "takes_overrides", False) else args.run(_no_rest(args, rest))
        if sys.stdout is not None:  # closed from the start
            sys.stdout.flush()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and console.output_closed():
            return NOBODY_READS
        return _end(error, trace=TRACE in given)
    finally:
        console.flush()


def _end(error: BaseException, trace: bool) -> int:
    """Prints the one line that a command ends with, and with `trace` what led to it."""
    stop = failures.explained(error)
    with contextlib.suppress(OSError):
        if trace:
            print("".join(traceback.format_exception(error)).rstrip(), file=sys.stderr)
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
