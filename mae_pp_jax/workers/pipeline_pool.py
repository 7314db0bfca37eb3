"""Stages of a pipeline side by side in worker processes, for CPUs: small models leave cores idle inside one process.

Each worker owns its share of the cores and trains one stage after another; a stage starts when the one it takes its
weights from is done. The parent shows the progress of all, read from the stages' own metrics files.
"""

import contextlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback

import tqdm

from mae_pp_jax.core import allocator, console, failures, handoff, hardware, loop, run_folder, storage
from mae_pp_jax.core import program as program_lib
from mae_pp_jax.core.errors import Preempted, RunStopped, UserError
from mae_pp_jax.stages import registry
from mae_pp_jax.suites import entry as suite_entry
from mae_pp_jax.workers import ending

log = logging.getLogger(__name__)

LINE_EVERY_SECONDS = 30.0  # between progress lines where there is no terminal
POLL_SECONDS = 0.5


def train_all(stages: dict, folder: storage.Path, workers: int, locate: handoff.Locate = storage.path) -> None:
    """Trains stages, several at a time.

    Args:
      stages: name → resolved config, each after those whose runs its `init_from` names, or a suite's entry.
      folder: stage NAME is trained in `folder`/NAME.
      workers: number of worker processes.
      locate: a function of a module, as `Stage.locate`.

    Raises:
      UserError, RunStopped, Preempted, Unforeseen: what the first failing stage raised; the others save and stop.
    """
    names = {str(folder / name): name for name in stages}
    work: dict[str, tuple[int, float]] = {}
    for name, config in stages.items():
        work[name] = _work(name, stages[names[config.run]] if _is_suite(config) else config, _is_suite(config))
    waiting = {name: {names[run] for run in _sources(config) if run in names} for name, config in stages.items()}
    urgency = {}  # FLOPs from the start of a stage to the end of the longest chain that it begins
    for name in reversed(list(stages)):
        after = [urgency[later] for later, sources in waiting.items() if name in sources]
        urgency[name] = work[name][1] + max(after, default=0.0)
    done: list[str] = []
    with _Workers(workers, locate) as crew, _Watch(folder, work) as watch:
        while waiting or crew.busy:
            ready = [name for name, sources in waiting.items() if sources <= set(done)]
            ready.sort(key=urgency.get, reverse=True)
            for name in ready[: crew.idle]:
                del waiting[name]
                crew.start(name, stages[name], folder / name)
            for name, result in crew.finished(POLL_SECONDS):
                done.append(name)
                log.info("[%d/%d] %s: %s", len(done), len(stages), name, _shown(result["metrics"]))
            watch.show(crew.busy, done)


def run_entry(config, folder: storage.Path, locate: handoff.Locate = storage.path) -> dict:
    """Trains a stage, or judges a run by a suite, as its resolved config says; returns its result."""
    return suite_entry.run(config, folder) if _is_suite(config) else loop.run(registry.create(config, locate), folder)


def _is_suite(config) -> bool:
    return isinstance(config, suite_entry.Entry)


def _sources(config) -> list[str]:
    """Folders of the runs that a stage starts from, or that a suite judges."""
    return [config.run] if _is_suite(config) else [s.run for s in handoff.sources(config.init_from).values()]


class _Workers:
    """Processes that train one stage after another. Each has its own pipe: a killed one holds no shared lock."""

    def __init__(self, count: int, locate: handoff.Locate):
        context = multiprocessing.get_context("spawn")
        os.environ.setdefault(allocator.VARIABLE, allocator.SETTING)  # where a notebook or a script is the parent
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._pipes, self._processes, self._names = [], [], [None] * count
        for index in range(count):
            ours, theirs = context.Pipe()
            args = theirs, cores[index::count], os.getpid(), locate
            process = context.Process(target=_worker, args=args, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    @property
    def busy(self) -> list[str]:
        """Names of the stages in training."""
        return [name for name in self._names if name is not None]

    @property
    def idle(self) -> int:
        """How many workers wait for a stage."""
        return self._names.count(None)

    def start(self, name: str, config, folder: storage.Path) -> None:
        """Gives a stage to an idle worker."""
        index = self._names.index(None)
        self._names[index] = name
        self._pipes[index].send((config, folder))

    def finished(self, seconds: float) -> list[tuple[str, dict]]:
        """(name, result) of stages that ended within `seconds`; raises what a failed one raised."""
        out = []
        for pipe in multiprocessing.connection.wait(self._pipes, seconds):
            index = self._pipes.index(pipe)
            name = self._names[index]
            try:
                result, error = pipe.recv()
            except (EOFError, ConnectionResetError):  # reset, where it died with something unread
                if self._terminated.is_set():
                    raise Preempted("preempted; run the same command again to resume") from None
                self._processes[index].join()
                raise RunStopped(
                    f"the process that trained {name} {ending.cause(self._processes[index].exitcode)}; "
                    "run the same command again to resume"
                ) from None
            if error is not None:
                raise error
            self._names[index] = None
            out.append((name, result))
        return out

    def __enter__(self):
        self._terminated = threading.Event()
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda *_: self._stop())
        return self

    def __exit__(self, *_):
        self._stop()  # a stage in training saves and leaves
        for pipe in self._pipes:
            pipe.close()  # then its worker finds that there is nothing more to do
        for process in self._processes:
            process.join()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)

    def _stop(self) -> None:
        self._terminated.set()
        for process in self._processes:
            process.terminate()


def _worker(pipe, cores: list[int], parent: int, locate: handoff.Locate) -> None:
    """Trains what comes through the pipe and answers (result, None) or (None, error)."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # before JAX counts the cores it may use
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and stops its workers
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    hardware.enable_compilation_cache()
    console.quiet_libraries()  # a stage's lines go to its own log.txt only
    while True:
        try:
            config, folder = pipe.recv()
        except (EOFError, OSError):  # the parent has closed its end
            return
        try:
            answer = run_entry(config, folder, locate), None
        except Exception as error:
            answer = None, _explained(error, folder)
        with contextlib.suppress(OSError):  # closed meanwhile
            pipe.send(answer)


def _explained(error: Exception, folder: storage.Path) -> Exception:
    """What the parent raises for an error of any kind; the trace of an unforeseen one is kept in the stage's log."""
    if not hasattr(error, "exit_code") and not hasattr(error, "trace_file"):
        with contextlib.suppress(UserError, OSError):  # where nothing can be written, the trace goes elsewhere
            storage.make_folder(folder)
            with run_folder.log_to(folder):
                log.error("%s", "".join(traceback.format_exception(error)))
            error.trace_file = folder / "log.txt"
    stop = failures.explained(error)
    return stop if stop is error else type(stop)(f"{folder.name}: {stop}")


def _leave_with(parent: int) -> None:
    """Ends this process when its parent is gone, however that died."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _shown(metrics: dict) -> str:
    """What was measured on evaluation sets, for a line; a value that is null was not measurable."""
    held_out = {name: value for name, value in metrics.items() if not name.startswith(("train/", "data/"))}
    return " ".join(f"{name} {'–' if value is None else f'{value:.4g}'}" for name, value in held_out.items())


def _work(name: str, config, judged: bool) -> tuple[int, float]:
    """(steps, model FLOPs) of a stage, or of a suite that judges it: the measure of progress."""
    try:
        stage = registry.create(config)
        if judged:  # about: features of as many images as it was trained on
            return 1, stage.records * stage.train_flops_per_example() / 3
        steps = program_lib.steps_of(stage, "train_for") if stage.trained else 1
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return steps, steps * config.global_batch * stage.train_flops_per_example() * stage.trained


class _Watch:
    """One bar over all stages on a terminal, a line now and then elsewhere; done and left are measured in FLOPs."""

    def __init__(self, folder: storage.Path, work: dict[str, tuple[int, float]]):
        self._folder, self._work, self._began = folder, work, time.monotonic()
        self._total = sum(flops for _, flops in work.values()) or 1.0  # stages may compute nothing that is counted
        self._start: float | None = None
        self._said = time.monotonic()
        self._bar = None

    def __enter__(self):
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(total=100.0, bar_format="{percentage:3.0f}%|{bar}| {desc}", dynamic_ncols=True)
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()

    def show(self, running: list[str], done: list[str]) -> None:
        now, spent = time.monotonic(), sum(self._work[name][1] for name in done)
        parts = []
        for name in running:
            row = _last_row(self._folder / name / "metrics.jsonl")
            steps, flops = self._work[name]
            loss = row.get("train/loss")
            share = row.get("step", 0) / steps
            spent += share * flops
            parts.append(f"{name} {share:.0%}" + ("" if loss is None else f" loss {loss:.3g}"))
        if self._start is None:
            self._start = spent  # what earlier calls had finished tells nothing about the speed of this one
        gone = spent - self._start
        left = (self._total - spent) * (now - self._began) / gone if gone else None
        text = f"{', '.join(parts)}; {'…' if left is None else console.clock(left)} left"
        if self._bar is not None:
            self._bar.n = min(100.0, 100.0 * spent / self._total)
            self._bar.set_description_str(text)
        elif running and now - self._said > LINE_EVERY_SECONDS:
            self._said = now
            log.info("%.0f%%: %s", 100 * spent / self._total, text)


def _last_row(path: storage.Path) -> dict:
    """The newest complete training row of a metrics file that another process is writing."""
    if not storage.is_file(path):
        return {}
    with storage.reading(path) as file:
        file.seek(max(0, storage.size(path) - 4096))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:  # the first line of the window is cut
            return {}
        if "train/loss" in row:
            return row
    return {}
