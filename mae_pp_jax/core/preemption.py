"""Preemption: on SIGTERM all processes of a run save at the same step; the same command resumes it. So does Ctrl-C."""

import contextlib
import itertools
import os
import signal
import sys
import threading

from jax.experimental import multihost_utils

from mae_pp_jax.core import hosts
from mae_pp_jax.core.errors import Interrupted, Preempted


class Preemption:
    """SIGTERM to this process, or to any process of the run: all get the same answer at the same step.

    With one process each step checks an event. With several, JAX's preemption service receives the signal, tells the
    other processes in the background and makes all stop at the step after the furthest one; until a signal comes, each
    step checks a value in memory and sends no message.

    Ctrl-C (SIGINT) to a run of one process does the same once a step is done; before that, and when it comes a second
    time, it raises KeyboardInterrupt at once.
    """

    _calls = itertools.count()  # of all training loops of this process, as JAX wants numbers that only grow

    def __init__(self):
        self._event = threading.Event()
        self._interrupted = self._asked = False

    def __enter__(self):
        self._catches = hosts.count() == 1 and threading.current_thread() is threading.main_thread()
        if self._catches:
            self._before = {signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: self._event.set())}
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is to be ignored
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_):
        if self._catches:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _interrupt(self, *_) -> None:
        if self._interrupted or not self._asked:
            raise KeyboardInterrupt
        self._interrupted = True
        self._event.set()
        with contextlib.suppress(OSError, ValueError):  # print is not safe in a signal's handler
            os.write(sys.__stderr__.fileno(), b"\ninterrupted: saving after this step; Ctrl-C again leaves at once\n")

    def ending(self, step: int) -> Exception:
        """What a run that has saved its state for this ends with."""
        kind, how = (Interrupted, "interrupted") if self._interrupted else (Preempted, "preempted")
        return kind(f"{how} at step {step}; state saved, run the same command again to resume")

    def reached(self) -> bool:
        """Whether to save and leave now; every process asks once per step."""
        self._asked = True
        if hosts.count() == 1:
            return self._event.is_set()
        return multihost_utils.reached_preemption_sync_point(next(self._calls))
