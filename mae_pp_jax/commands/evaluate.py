"""`evaluate`: measures the newest checkpoint of a run."""

import argparse
import hashlib
import logging
import math
import numbers

import jax

from mae_pp_jax.commands.arguments import overrides as parse_overrides
from mae_pp_jax.core import checkpoint, hardware, hosts, leaves, partition, run_folder, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten, unflatten
from mae_pp_jax.core.stage import Stage
from mae_pp_jax.stages import registry

log = logging.getLogger(__name__)

DESCRIPTION = """Evaluates the newest checkpoint of a run on its evaluation sets; prints the metrics as JSON and writes
a file per set, WORKDIR/evaluations/SET_STEP_….json: metrics, dataset, overrides and the SHA-256 of the checkpoint.
Other data or settings make another file.

examples:
  python -m mae_pp_jax evaluate --workdir=runs/demo/finetune_mae_wsp
  python -m mae_pp_jax evaluate --workdir=runs/finetune --config.evals.photos.data=/photos --evaluators=photos

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
    parser.add_argument("--workdir", metavar="DIR", help="folder of a run; with --suite also several: DIR,DIR2")
    parser.add_argument("--evaluators", metavar="SETS", help="evaluation sets, separated by commas (default: all)")
    parser.add_argument("--suite", choices=("image",), help="judge checkpoints by this suite of tasks")
    parser.add_argument("--evals", metavar="TASKS", help="suite: of linear,knn,low_shot,robustness (default: all)")
    parser.add_argument(
        "--data", metavar="NAME|FOLDER", help="suite: labelled images (default: the run's training data)"
    )
    parser.add_argument("--out", metavar="FOLDER", help="suite: where the table goes (default: DIR/suites)")
    parser.add_argument("--keys", action="store_true", help="suite: list every key and leave")
    hosts.add_arguments(parser)
    parser.set_defaults(run=run, takes_overrides=True)


def run(args, rest: list[str]) -> None:
    names, overrides = args.evaluators.split(",") if args.evaluators else None, parse_overrides(rest)
    if args.suite:
        from mae_pp_jax.commands import evaluate_suite  # which measures classifiers by this module

        evaluate_suite.run(args, overrides)
        return
    for option in ("evals", "data", "out", "keys"):
        if getattr(args, option):
            raise UserError(f"--{option}: only a suite knows it; add --suite=image")
    if not args.workdir:
        raise UserError("--workdir: give the folder of a run, such as --workdir=runs/finetune")
    with hosts.together(args):
        found = evaluate(args.workdir, names, overrides)
        if hosts.first():
            print(storage.json_text(found, indent=1))


def evaluate(workdir: str, names: list[str] | None = None, overrides: dict[str, str] | None = None) -> dict:
    """Metrics of the newest undamaged checkpoint, also written as JSON, a file for each evaluation set.

    Args:
      workdir: folder of a run.
      names: of evaluation sets; None for all.
      overrides: dotted key → text, in place of the run's own config.

    Returns:
      `step`, and `SET/measure` → number.

    Raises:
      UserError: no run there, or no evaluation set of that name.
    """
    hardware.enable_compilation_cache()
    folder = storage.path(workdir)
    if not storage.is_file(folder / "config.json"):
        raise UserError(f"--workdir: {folder} is not a run (no config.json); give a folder that `train` wrote")
    if hosts.first():
        storage.check_writable(folder, "--workdir", folder=True)
    config = registry.resolve(storage.read_json(folder / "config.json"), overrides, saved=True)
    step = checkpoint.find(folder, field="--workdir")
    meta = checkpoint.meta(folder, step)
    stage = registry.create(config.recalled(meta))
    stage.recall(meta)
    mesh = partition.make_mesh(config.mesh)
    partition.check_batch(config.global_batch, mesh, models=stage.dealt)
    stage.reader = partition.reader(mesh)
    evaluators = stage.evaluators()
    known = [e.name for e in evaluators]
    for name in names or ():
        if name not in known:
            raise UserError(f"--evaluators: {name} is not one of this stage's: {', '.join(known)}")
    saved = checkpoint.weights(folder, step)
    shapes = flatten(jax.eval_shape(stage.init, jax.random.key(0)))
    checkpoint.check_shapes(saved, shapes, f"{folder}/checkpoints/{step}")
    axes = partition.axes_of(stage.parameter_axes(), shapes)
    placed = partition.shardings(unflatten(shapes), axes, config.mesh.rules, mesh)
    wanted = {
        path: jax.ShapeDtypeStruct(shapes[path].shape, shapes[path].dtype, sharding=sharding)
        for path, sharding in flatten(placed).items()
    }
    params = unflatten(leaves.read(saved, wanted))
    found: dict[str, dict] = {}
    for evaluator in evaluators:
        if names is None or evaluator.name in names:
            values = evaluator.run(params, mesh).items()
            metrics = {name: value for name, value in values if isinstance(value, numbers.Real)}
            found[evaluator.name] = found.get(evaluator.name, {}) | metrics
    everything = {name: value for metrics in found.values() for name, value in metrics.items()}
    if absent := [name for name, value in everything.items() if not math.isfinite(value)]:
        log.info("%s: not a finite number, null in the JSON", ", ".join(absent))
    for name, metrics in found.items():
        if metrics and hosts.first():
            _write(folder, step, stage, name, overrides or {}, metrics)
    return {"step": step, **everything}


def _write(folder: storage.Path, step: int, stage: Stage, name: str, overrides: dict, metrics: dict) -> None:
    """Writes the metrics of an evaluation set with what they were measured on.

    Evaluations of other data, settings or checkpoints have other file names, so that none replaces another.
    """
    record = dict(
        evaluated=name,
        step=step,
        checkpoint_sha256=checkpoint.sha256(folder, step),
        dataset=stage.evaluation_set(name),
        overrides=overrides,
    )
    mark = hashlib.sha256(storage.json_text(record).encode()).hexdigest()[:8]
    storage.make_folder(folder / "evaluations")
    file = folder / "evaluations" / f"{name}_{step}_{mark}.json"
    storage.write_json(file, {**record, "revision": run_folder.code_revision(), "metrics": metrics})
    log.info("wrote %s", file)
