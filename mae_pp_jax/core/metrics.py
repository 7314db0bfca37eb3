"""Metrics as (sum, weight) pairs, and where they are shown: jsonl rows, TensorBoard, a progress bar or log lines."""

import concurrent.futures
import contextlib
import json
import logging
import os
import time

import jax
import jax.numpy as jnp
import tqdm

from mae_pp_jax.core import console, event_files, hosts, storage

log = logging.getLogger(__name__)


def zeros(names) -> dict:
    """name → (0, 0)."""
    return {name: (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)) for name in names}


def add(total: dict, new: dict) -> dict:
    """Adds pairs name by name; exact under padding (weight 0) and any split over devices and hosts."""
    return {name: (total[name][0] + s, total[name][1] + w) for name, (s, w) in new.items()}


def means(total: dict) -> dict[str, float]:
    """sum / weight of each pair as Python floats; fetches from the devices."""
    return {name: float(s) / float(w) if float(w) else float("nan") for name, (s, w) in jax.device_get(total).items()}


class Rows:
    """`metrics.jsonl`: one JSON object per line, keys `step`, `examples_seen`, `set/name`; process 0 writes.

    A row holds nothing that depends on the clock, so that a resumed run leaves the same bytes as an uninterrupted one.
    """

    def __init__(self, path: storage.Path, resume_step: int):
        """Opens the file and drops what a killed run wrote after the checkpoint it resumes from."""
        self._path = path
        self._file = None
        if not hosts.first():
            return
        kept = (
            [line for line in _complete_lines(path) if json.loads(line)["step"] <= resume_step] if resume_step else []
        )
        storage.write_whole(path, "".join(kept))
        self._file = storage.appending(path)

    def write(self, step: int, examples_seen: int, values: dict[str, float]) -> None:
        if self._file:
            row = storage.finite({"step": step, "examples_seen": examples_seen, **values})
            if absent := [name for name, value in row.items() if value is None]:
                log.info("step %d: %s: not a finite number, null in %s", step, ", ".join(absent), self._path.name)
            with storage.writing(self._path):
                self._file.write(storage.json_text(row) + "\n")
                self._file.flush()

    def last(self) -> dict[str, float | None]:
        """The newest value of every name on file; None for one that is not a finite number."""
        newest: dict[str, float | None] = {}
        for line in _complete_lines(self._path):
            newest.update(json.loads(line))
        return {name: value for name, value in newest.items() if "/" in name}

    def close(self) -> None:
        if self._file:
            with storage.writing(self._path):
                self._file.close()


def _complete_lines(path: storage.Path) -> list[str]:
    if not storage.is_file(path):
        return []
    return [line for line in storage.read_text(path).splitlines(keepends=True) if line.endswith("\n")]


class TensorBoard:
    """TensorBoard files through clu's writer, on a thread of its own: importing it takes seconds, training goes on."""

    def __init__(self, folder: storage.Path, enabled: bool, resume_step: int):
        """Drops what a killed run wrote after the checkpoint it resumes from, as `Rows` does."""
        if hosts.first():
            event_files.cut(folder, resume_step)
        self._folder = folder
        self._writer = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1) if enabled and hosts.first() else None
        self._jobs: list[concurrent.futures.Future] = []

    def _open(self):
        if self._writer is None:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            from clu import metric_writers  # slow: it imports TensorFlow

            self._writer = metric_writers.SummaryWriter(str(self._folder))
        return self._writer

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._submit(lambda: self._open().write_scalars(step, values))

    def drawing(self, step: int, name: str, drawing) -> None:
        """Shows a `stage.Drawing`."""
        self._submit(lambda: drawing.show(self._open(), name, step))

    def text(self, step: int, texts: dict[str, str]) -> None:
        self._submit(lambda: self._open().write_texts(step, texts))

    def _submit(self, job) -> None:
        if self._thread:
            self._jobs.append(self._thread.submit(job))

    def flush(self) -> None:
        """Returns when all so far is in the file: before a checkpoint, from which a run that is killed goes on."""
        if self._thread and self._jobs:
            self._submit(lambda: self._open().flush())
            with storage.writing(self._folder):
                for job in self._jobs:
                    job.result()
            self._jobs = []

    def close(self) -> None:
        try:
            self.flush()
        finally:
            if self._thread:
                self._thread.shutdown()


class Progress:
    """A bar with time left, speed and loss on a terminal; plain log lines elsewhere. Speed excludes compilation.

    Args:
      label: what is trained.
      start_step: steps done before.
      total_steps: steps of the whole run.
      global_batch: examples per step.
      example: what one is called.
    """

    def __init__(self, label: str, start_step: int, total_steps: int, global_batch: int, example: str):
        self._label, self._total, self._batch, self._example = label, total_steps, global_batch, example
        self._first, self._began = start_step, time.monotonic()
        self._last = (start_step, self._began)
        self._bar = None
        if console.on_terminal() and hosts.first():
            self._bar = tqdm.tqdm(
                total=total_steps * global_batch,
                initial=start_step * global_batch,
                unit=f" {example}s",
                unit_scale=True,
                desc=label,
                dynamic_ncols=True,
                smoothing=0.1,
            )

    def advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(step * self._batch - self._bar.n)

    def report(self, step: int, values: dict[str, float]) -> float:
        """Shows the values of a log step and returns examples per second since the last one."""
        now = time.monotonic()
        last_step, last_time = self._last
        speed = (step - last_step) * self._batch / max(now - last_time, 1e-9)
        self._last = (step, now)
        left = (self._total - step) * (now - self._began) / max(step - self._first, 1)
        shown = " ".join(f"{name.split('/', 1)[1]} {value:.4g}" for name, value in values.items())
        line = f"{self._label} step {step}/{self._total} {shown} {speed:,.0f} {self._example}s/s, {console.clock(left)} left"
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
            log.debug(line)
        else:
            log.info(line)
        return speed

    @contextlib.contextmanager
    def paused(self):
        """What happens inside (evaluation, saving) does not count as training time."""
        began = time.monotonic()
        yield
        away = time.monotonic() - began
        self._began, self._last = self._began + away, (self._last[0], self._last[1] + away)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
