"""The one training loop. It knows no stage by name: everything special stands behind `core.stage.Stage`.

Order within a step number: update, log row, evaluation, checkpoint. A checkpoint of step n is therefore written after
all rows of step n, and a resumed run drops only rows after n: no step enters the metrics twice.
"""

import contextlib
import dataclasses
import functools
import logging
import numbers
import time

import clu.parameter_overview
import jax
import numpy as np

from mae_pp_jax.core import (
    checkpoint,
    handoff,
    hardware,
    hosts,
    lease,
    leaves,
    lineage,
    metrics,
    partition,
    preemption,
    resuming,
    run_folder,
    storage,
)
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import program as program_lib
from mae_pp_jax.core.errors import RunStopped, UserError
from mae_pp_jax.core.functional import flatten
from mae_pp_jax.core.stage import Stage
from mae_pp_jax.core.state import TrainState

log = logging.getLogger(__name__)

INIT_STREAM = 2**32 - 1  # fold_in index of the initialisation; steps use 0, 1, 2, …
PROFILED_STEPS = 10


def initial_state(prog: program_lib.Program) -> tuple[TrainState, dict[str, dict], str, list[dict]]:
    """Random weights, then the handoff.

    Returns:
      (state before the first update, records of the source runs by part, what became of every weight, references to the
      weights that checkpoints do not write again).
    """
    stage, config = prog.stage, prog.stage.config
    key = jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM)
    with jax.set_mesh(prog.mesh):
        params = jax.jit(stage.init, out_shardings=prog.shardings.params, compiler_options=_quick_to_compile())(key)
        sources, account, moved = {}, "random initialisation", {}
        if handoff.sources(config.init_from):
            params, sources, account, moved = handoff.transfer(stage.handoff, config.init_from, params, stage.locate)
        received = flatten(params)
        params = stage.prepare(params, prog.mesh)
        frozen = flatten(prog.optimizer.split(params)[1])
        unchanged = {path: leaf for path, leaf in moved.items() if frozen.get(path) is received[path]}
        refers = {"auto": stage.refers and unchanged, "reference": True}.get(config.checkpoint.frozen)
        references = _references(unchanged, frozen) if refers else []
        return jax.jit(prog.first_state, out_shardings=prog.shardings)(params), sources, account, references


def run(stage: Stage, workdir: str) -> dict:
    """Trains a stage in a folder, or resumes it, or returns the result of the finished run.

    Returns:
      The content of `result.json`.

    Raises:
      UserError: the config, data, weights or folder do not fit; nothing was written.
      RunStopped: a loss or gradient was not finite, or memory ran out.
      Preempted, Interrupted: SIGTERM or Ctrl-C came; the state is saved.
    """
    folder = run_folder.RunFolder(workdir, stage.config)
    hosts.check_same("--config", config_lib.to_dict(stage.config), "start all processes with the same command")
    if (result := resuming.finished(folder, stage)) is not None:
        return result
    if hosts.first():
        storage.check_writable(folder.path, "--workdir", folder=True)
    mesh = partition.make_mesh(stage.config.mesh)
    stage.reader = partition.reader(mesh)
    with hosts.first_goes_first():  # a dataset that is not there yet is prepared once
        prog = program_lib.make_to_run(stage, mesh)
        dataset = stage.dataset  # opens all splits: a missing one is reported before anything is written
    hosts.check_same("config.data.name", dataset, "give all processes the same data")
    with contextlib.ExitStack() as cleanup:
        still_owned = cleanup.enter_context(lease.hold(folder.path))
        folder.look()  # again: another process may have had it meanwhile
        if (result := resuming.finished(folder, stage)) is not None:
            return result
        goes_on = bool(hosts.from_first(lambda: checkpoint.steps(folder.checkpoints)))
        state, sources, account, frozen = (None, {}, "", []) if goes_on else initial_state(prog)
        if not goes_on:
            folder.create(stage.documents())
        cleanup.enter_context(run_folder.log_to(folder.path))
        saves = checkpoint.Checkpoints(folder.checkpoints, stage.config.checkpoint.keep, still_owned)
        cleanup.callback(saves.close)
        revision = run_folder.code_revision()
        now = dict(config=config_lib.to_dict(stage.config), dataset=dataset)
        if goes_on:
            state, meta = saves.restore(prog.shapes, revision)
            resuming.check_same(meta, dataset, stage, folder)
            folder.create()  # with the names of today
            # Runs of earlier versions lack the identity; the data is the same.
            meta = {"identity": stage.identity(), **meta, **now}
            meta = resuming.resumed(meta, int(state.step), revision, stage.config.checkpoint.frozen)
            log.info("resumed %s at step %d", folder.path, int(state.step))
        else:
            log.info("%s", account)
            meta = dict(revision=revision, revisions=[{"step": 0, "revision": revision}], wall_seconds=0.0)
            meta |= {**now, "identity": stage.identity()}
            meta["lineage"], meta["parents"] = lineage.join(sources)
            if frozen:
                meta["frozen"] = frozen
        if not stage.trained:
            return _write_untrained(folder, saves, state, meta, stage)
        _describe(prog)
        stop = cleanup.enter_context(preemption.Preemption())
        cleanup.push(hosts.tell)
        return _Training(prog, folder, saves, meta, stop).go(state)


class _Training:
    """One `run` from its first to its last step."""

    def __init__(
        self, prog: program_lib.Program, folder: run_folder.RunFolder, saves: checkpoint.Checkpoints, meta, stop
    ):
        self.prog, self.folder, self.saves, self.meta, self.stop = prog, folder, saves, meta, stop
        self.stage, self.mesh, self.batch = prog.stage, prog.mesh, prog.stage.config.global_batch
        self.evaluators = prog.stage.evaluators()
        self.began = time.monotonic()
        self.flops = prog.stage.train_flops_per_example()
        if chance := prog.stage.chance():
            log.info("chance, without a look at the %ss: %s", prog.stage.example, _shown(chance))
        self.chance = chance
        self.speeds: list[float] = []
        zeros = functools.partial(metrics.zeros, list(prog.shapes.metrics))
        self.no_metrics = jax.jit(zeros, out_shardings=prog.shardings.metrics)

    def go(self, state: TrainState) -> dict:
        stage, total, lengths = self.stage, self.prog.lengths.total, self.prog.lengths
        step = start = int(state.step)
        self.rows = metrics.Rows(self.folder.path / "metrics.jsonl", resume_step=start)
        self.board = metrics.TensorBoard(self.folder.path / "tensorboard", stage.config.tensorboard, start)
        compile_began = time.monotonic()
        update = self.prog.compile_to_run()
        log.info("compiled the train step in %.1f s", time.monotonic() - compile_began)
        self.progress = metrics.Progress(stage.config.stage, start, total, self.batch, stage.example)
        batches = stage.train_batches(start)
        first = min(start + 2, total - 1)
        trace = _Trace(self.folder.path / "profile", first, min(start + 2 + PROFILED_STEPS, total))
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self.rows.close)
            cleanup.callback(self.board.close)
            cleanup.callback(self.progress.close)
            cleanup.callback(trace.close)
            batch = partition.to_global(next(batches), self.mesh) if step < total else None
            while step < total:
                if stage.config.profile:
                    trace.before(step)
                state = update(state, batch)
                step += 1
                batch = partition.to_global(next(batches), self.mesh) if step < total else None
                self.progress.advance(step)
                trace.after(step, state)
                if step % lengths.log == 0 or step == total:
                    state = self.log(step, state)
                if step % lengths.evaluate == 0 or step == total:
                    self.evaluate(step, state)
                if self.stop.reached() and step < total:
                    self.save(step, state)
                    self.saves.wait()
                    raise self.stop.ending(step)
                if step % lengths.save == 0 or step == total:
                    self.save(step, state)
            self.saves.wait()
            return self.finish(step, state)

    def log(self, step: int, state: TrainState) -> TrainState:
        """Writes the means since the last log and returns the state with empty sums."""
        self.check_finite(state)
        values = {f"train/{name}": value for name, value in metrics.means(state.metrics).items()}
        values["train/learning_rate"] = float(self.prog.optimizer.learning_rate(np.int32(step - 1)))
        counts = {name: int(count) for name, count in jax.device_get(state.counts).items()}
        self.rows.write(step, step * self.batch, {**values, **counts})
        speed = self.progress.report(step, {n: v for n, v in values.items() if n != "train/gradient_norm"})
        self.speeds.append(speed)
        machine = {"speed/examples_per_second": speed, "speed/model_tflops_per_second": speed * self.flops / 1e12}
        if peak := hardware.peak_flops(self.mesh.devices.flat[0]):
            machine["speed/utilization"] = speed * self.flops / (peak * self.mesh.size)
        self.board.scalars(step, {**values, **counts, **machine})
        self.stage.check_counts(counts, step * self.batch)
        return dataclasses.replace(state, metrics=self.no_metrics())

    def evaluate(self, step: int, state: TrainState) -> None:
        self.check_finite(state)
        params = self.prog.averaged(state)
        with self.progress.paused():
            for evaluator in self.evaluators:
                found = evaluator.run(params, self.mesh)
                scalars = {n: v for n, v in found.items() if isinstance(v, numbers.Real)}
                if scalars:
                    self.rows.write(step, step * self.batch, scalars)
                    log.info("step %d %s", step, " ".join(f"{n} {v:.4g}" for n, v in scalars.items()))
                self.board.scalars(step, scalars)
                for name in found.keys() - scalars.keys():
                    self.board.drawing(step, name, found[name])
                    self.folder.write_file(*found[name].file(name, step))

    def save(self, step: int, state: TrainState) -> None:
        self.check_finite(state)
        with self.progress.paused():
            self.board.flush()
            wall = self.meta["wall_seconds"] + time.monotonic() - self.began
            self.saves.save(step, state, {**self.meta, "wall_seconds": wall, "step": step})

    def check_finite(self, state: TrainState) -> None:
        bad = int(state.bad_step)
        if bad >= 0:
            self.saves.wait()
            raise RunStopped(
                f"step {bad}: loss or gradient is not finite, in batch {bad} ({self.stage.describe_batch(bad)}); "
                "the last checkpoint is kept; lower config.optim.lr or set config.optim.clip"
            )

    def finish(self, step: int, state: TrainState) -> dict:
        result = dict(
            stage=self.stage.config.stage,
            step=step,
            examples_seen=step * self.batch,
            metrics=hosts.from_first(self.rows.last),
            chance=self.chance,
            examples_per_second=float(np.median(self.speeds)) if self.speeds else None,
            wall_seconds=self.meta["wall_seconds"] + time.monotonic() - self.began,
            train_flops_per_example=self.flops,
            **_origin(self.stage, self.meta, self.prog.averaged(state)),
        )
        self.folder.write_result(result)
        log.info("finished %s: %s", self.folder.path, _shown(result["metrics"]))
        return result


def _origin(stage: Stage, meta: dict, params) -> dict:
    """What a result says of its weights, and of where they come from."""
    return dict(
        parameters=sum(int(np.prod(leaf.shape)) for leaf in flatten(params).values()),
        seed=stage.config.seed,
        dataset=stage.dataset,
        lineage=meta["lineage"],
        parents=lineage.parents_of(meta["lineage"], meta.get("parents")),
        revision=meta["revision"],
        revisions=meta["revisions"],
        params_sha256=run_folder.params_sha256(params),
    )


def _write_untrained(
    folder: run_folder.RunFolder, saves: checkpoint.Checkpoints, state: TrainState, meta: dict, stage: Stage
) -> dict:
    """The end of a stage without training: its weights as they start are checkpoint 0."""
    if not hosts.from_first(lambda: checkpoint.steps(folder.checkpoints)):
        saves.save(0, state, {**meta, "step": 0})
        saves.wait()
    origin = _origin(stage, meta, state.params)
    result = dict(stage=stage.config.stage, step=0, examples_seen=0, metrics={}, wall_seconds=0.0, **origin)
    folder.write_result(result)
    log.info("wrote the weights of stage %s to %s", stage.config.stage, folder.path)
    return result


class _Trace:
    """The profiler's trace of steps `first` to `last`; its failures are warnings and never end the training.

    JAX has one profiler per process: left open, it would refuse the next run that wants one.
    """

    def __init__(self, folder: storage.Path, first: int, last: int):
        self._folder, self._first, self._last = str(folder), first, last
        self._open = False

    def before(self, step: int) -> None:
        if step == self._first:
            self._open = self._try(lambda: jax.profiler.start_trace(self._folder))

    def after(self, step: int, state: TrainState) -> None:
        if self._open and step == self._last:
            jax.block_until_ready(state.step)
            self.close()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._try(jax.profiler.stop_trace)

    def _try(self, act) -> bool:
        try:
            act()
            return True
        except Exception as error:  # of any kind: the profiler's plugins raise what they like
            log.warning("config.profile: no trace in %s: %s", self._folder, error)
            return False


def _shown(values: dict[str, float | None]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)


def _references(unchanged: dict, frozen: dict) -> list[dict]:
    """References to the frozen weights that came unchanged from another run.

    Raises:
      UserError: there are none, so that the key would do nothing.
    """
    if not unchanged:
        raise UserError(
            "config.checkpoint.frozen: 'reference' has nothing to refer to, as no weight is both frozen and taken as "
            "it is from config.init_from.run; use 'copy'"
        )
    return leaves.references(unchanged, frozen)


def _describe(prog: program_lib.Program) -> None:
    """Logs parameters, their layout and the size of the task."""
    shapes, lengths, stage = prog.shapes, prog.lengths, prog.stage
    log.info("%s", clu.parameter_overview.get_parameter_overview(shapes.params, include_stats=False))
    parts = {**shapes.params, "optimizer": shapes.opt_state}
    if shapes.ema is not None:
        parts["ema"] = shapes.ema
    tables = {name: (tree, jax.tree.map(lambda leaf: leaf.sharding, tree)) for name, tree in parts.items()}
    log.info("%s", partition.table(tables, prog.mesh))
    log.info(
        "%d steps of %d %ss over %d records; %.4g model FLOPs per step",
        lengths.total,
        stage.config.global_batch,
        stage.example,
        stage.records,
        stage.train_flops_per_example() * stage.config.global_batch,
    )


def _quick_to_compile() -> dict[str, int]:
    """Compiler options for a program that runs once: XLA's CPU compiler spends seconds on random bits otherwise."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
