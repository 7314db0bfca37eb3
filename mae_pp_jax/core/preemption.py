"""Preemption: on SIGTERM all processes of a run save at the same step; the same command resumes it."""

import itertools
import signal
import threading

from jax.experimental import multihost_utils

from mae_pp_jax.core import hosts


class Preemption:
    """SIGTERM to this process, or to any process of the run: all get the same answer at the same step.

    With one process each step checks an event. With several, JAX's preemption service receives the signal, tells the
    other processes in the background and makes all stop at the step after the furthest one; until a signal comes, each
    step checks a value in memory and sends no message.
    """

    _calls = itertools.count()  # of all training loops of this process, as JAX wants numbers that only grow

    def __init__(self):
        self._event = threading.Event()

    def __enter__(self):
        self._catches = hosts.count() == 1 and threading.current_thread() is threading.main_thread()
        if self._catches:
            self._before = signal.signal(signal.SIGTERM, lambda *_: self._event.set())
        return self

    def __exit__(self, *_):
        if self._catches:
            signal.signal(signal.SIGTERM, self._before)

    def reached(self) -> bool:
        """Whether to save and leave now; every process asks once per step."""
        if hosts.count() == 1:
            return self._event.is_set()
        return multihost_utils.reached_preemption_sync_point(next(self._calls))
