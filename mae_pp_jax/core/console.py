"""What a command prints: our own lines, above a progress bar if there is one, and no noise of libraries."""

import logging
import os
import sys

import absl.logging
import tqdm


class _AroundBar(logging.Handler):
    """Prints lines above a progress bar instead of through it."""

    def emit(self, record):
        tqdm.tqdm.write(self.format(record), file=sys.stderr)


def log_to_stderr() -> None:
    """Our lines of level INFO and above go to stderr as they are."""
    ours = logging.getLogger("mae_pp_jax")
    if not ours.handlers:
        handler = _AroundBar(logging.INFO)
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)


def only_warnings() -> None:
    """For the processes of a run that do not talk: what they print are warnings and errors."""
    for handler in logging.getLogger("mae_pp_jax").handlers:
        if isinstance(handler, _AroundBar):
            handler.setLevel(logging.WARNING)


def on_terminal() -> bool:
    """Whether our lines go to a terminal, where a progress bar may move; false in workers, which say nothing."""
    shown = any(isinstance(handler, _AroundBar) for handler in logging.getLogger("mae_pp_jax").handlers)
    return shown and sys.stderr.isatty()


def clock(seconds: float) -> str:
    """A length of time as people read it: 1080 → "18:00", 3723 → "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def quiet_libraries() -> None:
    """Only our own loggers speak: orbax and asyncio print tracebacks, a thread each, of what they then also raise."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("mae_pp_jax").setLevel(logging.DEBUG)
    logging.getLogger("mae_pp_jax").propagate = False
