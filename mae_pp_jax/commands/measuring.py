"""Measures a run's newest checkpoint on its evaluation sets, for `evaluate` and what builds on it."""

import hashlib
import logging
import math
import numbers

from mae_pp_jax.commands import runs, saved_run
from mae_pp_jax.core import checkpoint, hardware, hosts, partition, run_folder, storage
from mae_pp_jax.core.errors import UserError

log = logging.getLogger(__name__)


def evaluate(
    workdir: str, names: list[str] | None = None, overrides: dict[str, str] | None = None, *, out: str | None = None
) -> dict:
    """Metrics of the newest undamaged checkpoint, also written as JSON, a file for each evaluation set.

    Args:
      workdir: folder of a run, a released name or a file of weights; see `runs.locate`.
      names: of evaluation sets; None for all.
      overrides: dotted key → text, in place of the run's own config.
      out: folder to keep the files in, in `evaluations/`; None: see `runs.results`.

    Returns:
      `step`, and `SET/measure` → number.

    Raises:
      UserError: no run there, or no evaluation set of that name.
    """
    folder, run = opened(workdir, overrides)
    kept = storage.path(out, "--out") if out else runs.results(workdir, folder)
    if hosts.first():
        storage.check_writable(kept, "--out" if kept != folder else "--workdir", folder=True)
    run.stage.recall(run.meta)
    evaluators = run.stage.evaluators()
    known = [e.name for e in evaluators]
    for name in names or ():
        if name not in known:
            raise UserError(f"--evaluators: {name} is not one of this stage's: {', '.join(known)}")
    params = run.parameters()
    found: dict[str, dict] = {}
    for evaluator in evaluators:
        if names is None or evaluator.name in names:
            values = evaluator.run(params, run.mesh).items()
            metrics = {name: value for name, value in values if isinstance(value, numbers.Real)}
            found[evaluator.name] = found.get(evaluator.name, {}) | metrics
    everything = {name: value for metrics in found.values() for name, value in metrics.items()}
    if absent := [name for name, value in everything.items() if not math.isfinite(value)]:
        log.info("%s: not a finite number, null in the JSON", ", ".join(absent))
    for name, metrics in found.items():
        if metrics and hosts.first():
            _write(run, kept, name, overrides or {}, metrics)
    return {"step": run.step, **everything}


def opened(workdir: str, overrides: dict[str, str] | None) -> tuple[storage.Path, saved_run.SavedRun]:
    """A run's folder, and its newest checkpoint with a mesh over which batches can be split; see `evaluate`."""
    hardware.enable_compilation_cache()
    folder = runs.locate(workdir, "--workdir")
    run = saved_run.load(folder, overrides)
    partition.check_batch(run.stage.config.global_batch, run.mesh, models=run.stage.dealt)
    return folder, run


def _write(run: saved_run.SavedRun, kept: storage.Path, name: str, overrides: dict, metrics: dict) -> None:
    """Writes the metrics of an evaluation set with what they were measured on.

    Evaluations of other data, settings or checkpoints have other file names, so that none replaces another.
    """
    record = dict(
        evaluated=name,
        step=run.step,
        checkpoint_sha256=checkpoint.sha256(run.folder, run.step),
        dataset=run.stage.evaluation_set(name),
        overrides=overrides,
    )
    mark = hashlib.sha256(storage.json_text(record).encode()).hexdigest()[:8]
    storage.make_folder(kept / "evaluations")
    file = kept / "evaluations" / f"{name}_{run.step}_{mark}.json"
    storage.write_json(file, {**record, "revision": run_folder.code_revision(), "metrics": metrics})
    log.info("wrote %s", file)
