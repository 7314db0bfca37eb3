"""`evaluate`: measures the newest checkpoint of a run."""

import argparse

from mae_pp_jax.commands import arguments, evaluate_suite, mistakes
from mae_pp_jax.commands.measuring import evaluate
from mae_pp_jax.core import hosts, storage
from mae_pp_jax.core.errors import UserError

DESCRIPTION = """Evaluates the newest checkpoint of a run on its evaluation sets; prints the metrics as JSON and writes
a file per set, RUN/evaluations/SET_STEP_….json: metrics, dataset, overrides and the SHA-256 of the checkpoint.
Other data or settings make another file.

examples:
  python -m mae_pp_jax evaluate --workdir=runs/demo/finetune_mae_wsp
  python -m mae_pp_jax evaluate --workdir=maws:vit_b16_ft_in1k --config.data.name=imagenet2012
  python -m mae_pp_jax evaluate --workdir=runs/finetune --config.evals.photos.data=/photos --evaluators=photos

--mistakes=FILE.html instead writes a page of what a classifier gets wrong on a set: the pictures as the model sees
them, their classes and the three most probable answers, the most confident first.

  python -m mae_pp_jax evaluate --workdir=runs/demo/finetune_mae_wsp --mistakes=mistakes.html

--config.KEY=VALUE replaces a key of the run's config; --config.evals.NAME.KEY=VALUE changes or adds a set. Classes and
hashtags of a set are matched by name with those that the checkpoint was trained on.

--suite=image judges checkpoints of any stage by what their features are worth on a labelled dataset: linear classifiers
(a grid of settings), nearest neighbours, 1, 5 and 10 images per class, and for classifiers their evaluation sets. It
prints one table and writes it to DIR/suites (of the first DIR, or --out) as image.json, image.md and image.png. Features
are computed once per checkpoint and set (DIR/features), what is done already is not measured again.

  python -m mae_pp_jax evaluate --suite=image --workdir=runs/demo/mae,runs/demo/mae_wsp --evals=linear,knn,low_shot
  python -m mae_pp_jax evaluate --suite=image --workdir=runs/demo/mae --data=/photos --config.low_shot.shots=1,5

--config.KEY=VALUE then is a key of the suite; --keys lists them with their values and meaning."""


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "evaluate",
        help="measure the newest checkpoint of a run",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", metavar="RUN", help=f"{arguments.RUN}; with --suite also several: RUN,RUN2")
    parser.add_argument("--evaluators", metavar="SETS", help="evaluation sets, separated by commas (default: all)")
    parser.add_argument(
        "--mistakes", metavar="FILE.html", help="write this page of the most confident mistakes on a set"
    )
    parser.add_argument("--suite", choices=("image",), help="judge checkpoints by this suite of tasks")
    parser.add_argument("--evals", metavar="TASKS", help="suite: of linear,knn,low_shot,robustness (default: all)")
    parser.add_argument(
        "--data", metavar="NAME|FOLDER", help="suite: labelled images (default: the run's training data)"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="keep the files in DIR/evaluations, or a suite's table in DIR (default: RUN, or results/NAME here for "
        "weights)",
    )
    parser.add_argument("--keys", action="store_true", help="suite: list every key and leave")
    hosts.add_arguments(parser)
    parser.set_defaults(run=run, takes_overrides=True)


def run(args, rest: list[str]) -> None:
    names, overrides = args.evaluators.split(",") if args.evaluators else None, arguments.overrides(rest)
    if args.mistakes:
        _show_mistakes(args, names, overrides)
        return
    if args.suite:
        evaluate_suite.run(args, overrides)
        return
    _check_arguments(args)
    with hosts.together(args):
        found = evaluate(args.workdir, names, overrides, out=args.out)
        if hosts.first():
            print(storage.json_text(found, indent=1))


def _check_arguments(args) -> None:
    for option in ("evals", "data", "keys"):
        if getattr(args, option):
            raise UserError(f"--{option}: only a suite knows it; add --suite=image")
    if not args.workdir:
        raise UserError("--workdir: give the folder of a run, such as --workdir=runs/finetune")


def _show_mistakes(args, names: list[str] | None, overrides: dict[str, str]) -> None:
    if args.suite:
        raise UserError("--mistakes: a suite has none; leave out --suite")
    if args.out:
        raise UserError("--out: --mistakes writes one file and no metrics; leave one of them out")
    _check_arguments(args)
    if names and len(names) > 1:
        raise UserError("--evaluators: --mistakes shows one set; name one")
    with hosts.together(args):
        found = mistakes.mistakes(args.workdir, args.mistakes, names[0] if names else None, overrides)
        shown = "all of them are" if found["shown"] == found["wrong"] else f"the {found['shown']} most confident are"
        print(
            f"{args.mistakes}: {found['wrong']:,} of the {found['measured']:,} images of {found['set']} got a wrong "
            f"answer, {shown} shown"
        )
