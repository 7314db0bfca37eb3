"""What a command prints: the package's own lines, above a progress bar if there is one, and none of libraries."""

import contextlib
import logging
import os
import select
import sys

import absl.logging
import tqdm

from mae_pp_jax.core import storage


class _AroundBar(logging.Handler):
    """Prints lines above a progress bar instead of through it."""

    def emit(self, record):
        # Nobody may read any more, as after a lost connection: the work goes on.
        with contextlib.suppress(OSError, ValueError):
            tqdm.tqdm.write(self.format(record), file=sys.stderr)


def log_to_stderr() -> None:
    """Prints this package's log lines of level INFO and above on stderr, unchanged."""
    ours = logging.getLogger("mae_pp_jax")
    if not ours.handlers:
        handler = _AroundBar(logging.INFO)
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)


def only_warnings() -> None:
    """For all processes but the first: only warnings and errors are printed."""
    for handler in logging.getLogger("mae_pp_jax").handlers:
        if isinstance(handler, _AroundBar):
            handler.setLevel(logging.WARNING)


def on_terminal() -> bool:
    """Whether output goes to a terminal, where a progress bar can be drawn; false in workers, which print nothing."""
    shown = any(isinstance(handler, _AroundBar) for handler in logging.getLogger("mae_pp_jax").handlers)
    return shown and sys.stderr.isatty()


def replace_unprintable() -> None:
    """Prints "?" for characters that the terminal's encoding lacks (ASCII, code pages), and for parts of file names."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def output_closed() -> bool:
    """Whether the program that read stdout or stderr has ended."""
    closed = []
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # none there, or none of the system
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLOUT)
            closed.append(any(event & select.POLLERR for _, event in poll.poll(0)))
    return any(closed)


def flush() -> None:
    """Writes out what was printed, as far as that is possible: Python's own attempt at its end would print a trace."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError), storage.nowhere() as nothing:
                os.dup2(nothing.fileno(), stream.fileno())


def clock(seconds: float) -> str:
    """A length of time as people read it: 1080 → "18:00", 3723 → "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def quiet_libraries() -> None:
    """Silences libraries' loggers: orbax and asyncio print tracebacks, once per thread, of what they also raise."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # TensorFlow, which computes nothing here, tells of it anyhow
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("mae_pp_jax").setLevel(logging.DEBUG)
    logging.getLogger("mae_pp_jax").propagate = False
