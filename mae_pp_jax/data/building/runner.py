"""Runs parts on Apache Beam: on this machine by default, or on any runner that Beam has."""

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence

import tqdm

from mae_pp_jax.core import console
from mae_pp_jax.core.errors import Preempted, UserError
from mae_pp_jax.data.building.items import Part

log = logging.getLogger(__name__)

_LINE_EVERY_SECONDS = 30.0  # between progress lines where there is no terminal
_POLL_SECONDS = 0.5


def run(what: str, step: Callable, parts: Sequence[Part], *, runner: str, options: Sequence[str], workers: int) -> None:
    """Applies `step` to every (index, part) that it has not done.

    Args:
      what: is being done, for the progress bar.
      step: what to do with (index, part); `step.done(index)` is the file that says that it is done.
      parts: of the input.
      runner: name of a Beam runner; empty: this machine.
      options: Beam's own options, as `project=my-project`.
      workers: threads on this machine; decoding, encoding and writing run side by side in them.

    Raises:
      UserError: Beam is not installed, an option is unknown, or a part fails.
    """
    todo = [(index, part) for index, part in enumerate(parts) if not step.done(index).exists()]
    if len(todo) < len(parts):
        log.info("%s: %d of %d parts are done already", what, len(parts) - len(todo), len(parts))
    if not todo:
        return
    beam, pipeline = _pipeline(runner, options, workers)
    pipeline | beam.Create(todo) | beam.Reshuffle() | beam.Map(step)
    with _Progress(what, step, [index for index, _ in todo]):
        try:
            pipeline.run().wait_until_finish()
        except KeyboardInterrupt:
            print("\nstopped: finished parts are kept, the same command goes on from here", file=sys.stderr, flush=True)
            os._exit(Preempted.exit_code)  # ends at once: Beam's threads would first finish their parts
        except Exception as error:  # Beam wraps what a part raised in types of its own, and leaves its text
            own = re.search(r"UserError: (.*?)(?: \[while running|\n|$)", str(error))
            if own:
                raise UserError(own[1]) from error
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UserError(
                f"--runner: a part failed ({type(error).__name__}: {lines[-1] if lines else ''}); fix it and run the "
                "same command again, which goes on from here"
            ) from error


def _pipeline(runner: str, options: Sequence[str], workers: int):
    """The module and an empty pipeline."""
    logging.getLogger().setLevel(logging.ERROR)  # Beam logs through the root logger
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    except ImportError as error:
        raise UserError(
            f"data build: needs Apache Beam ({error}); install it with pip install -e '.[beam]' -c constraints.txt"
        ) from error
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    given = [option if option.startswith("--") else f"--{option}" for option in options]
    here = not runner
    if here:
        given = ["--direct_running_mode=multi_threading", f"--direct_num_workers={workers}", *given]
    try:
        # Threads of this process: they need no start, and none outlives a killed build.
        return beam, beam.Pipeline(runner=FnApiRunner() if here else runner, options=PipelineOptions(given))
    except (ValueError, SystemExit) as error:
        raise UserError(f"--runner: {runner or 'this machine'} with {' '.join(given)}: {error}") from error


class _Progress:
    """A bar on a terminal, a line now and then elsewhere; counts the files that finished parts leave."""

    def __init__(self, what: str, step: Callable, waiting: list[int]):
        self._what, self._step, self._waiting, self._total = what, step, waiting, len(waiting)
        self._stop = threading.Event()

    def __enter__(self):
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(total=self._total, desc=self._what, unit=" parts", dynamic_ncols=True)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()
        if self._bar is not None:
            if error == (None, None, None):
                self._bar.update(self._total - self._bar.n)
            self._bar.close()

    def _watch(self) -> None:
        began = said = time.monotonic()
        while not self._stop.wait(_POLL_SECONDS):
            self._waiting = [index for index in self._waiting if not self._step.done(index).exists()]
            finished, now = self._total - len(self._waiting), time.monotonic()
            if self._bar is not None:
                self._bar.update(finished - self._bar.n)
            elif now - said > _LINE_EVERY_SECONDS:
                said = now
                left = (now - began) * (self._total - finished) / finished if finished else 0
                more = f"; {console.clock(left)} left" if finished else ""
                log.info("%s: %d of %d parts%s", self._what, finished, self._total, more)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
