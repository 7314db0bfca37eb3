"""`python -m mae_pp_jax report`: writes the report of a pipeline's folder."""

import argparse

from mae_pp_jax import reporting

_DESCRIPTION = """Writes report.html and report.json from what the runs of a pipeline left in its folder.

report.html is one file that works offline: the table of accuracies, curves, reconstructions, what was run and how to
run it on other data. report.json is a list of {init, task, metric, mean, std, seeds, splits}. Nothing is trained, so
the report of a pipeline that is still running, or was stopped, can be written at any time: it says what is missing.
The pipeline command writes it too, when it ends."""


def add_parser(subparsers) -> None:
    """Adds the verb to the command line."""
    parser = subparsers.add_parser(
        "report",
        help="write report.html and report.json of a pipeline's folder",
        description=_DESCRIPTION,
        epilog="example: python -m mae_pp_jax report --workdir=runs/demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder that the pipeline command ran in")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Writes the report and prints where it stands.

    Raises:
      UserError: the folder is not a pipeline's, or cannot be written to.
    """
    for path in reporting.write(args.workdir):
        print(path)
