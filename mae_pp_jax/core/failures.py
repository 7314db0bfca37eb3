"""What any exception is told as: one line and an exit code; the trace of an unforeseen one is kept in a file."""

import errno
import os
import time
import traceback

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import Interrupted, RunStopped, Unforeseen, UserError

# How XLA, OpenCV, PyTorch and the C++ library say that memory is not enough.
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "can't allocate memory", "std::bad_alloc")


def explained(error: BaseException) -> Exception:
    """The exception of `core.errors` that stands for any other: its message is one line, its `exit_code` the command's.

    Args:
      error: what was raised. Where its trace is in a file already, its attribute `trace_file` names that file.
    """
    if hasattr(error, "exit_code"):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted; the same command starts again, or resumes a run from its last checkpoint")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        what, why = error.filename or "the output", (error.strerror or str(error)).lower()
        return UserError(f"{what} cannot be written: {why}; free space, or write elsewhere")
    if reason := out_of_memory(error):
        return RunStopped(
            f"out of memory ({reason}); lower config.global_batch (embed: --batch) or the size of an example, raise "
            "config.microbatches, set config.model.remat=full, or use more devices with config.mesh.fsdp"
        )
    told = " ".join(str(error).split())[:300]
    where = getattr(error, "trace_file", None) or _keep("".join(traceback.format_exception(error)))
    return Unforeseen(f"{type(error).__name__}: {told} (not expected here; its trace: {where}, or again with --trace)")


def out_of_memory(error: BaseException) -> str | None:
    """The first line of what says that memory was not enough, in an exception or in what it came from, or None."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if isinstance(seen, MemoryError):
            return text.partition("\n")[0][:200] or "of this machine"
        # A path or a setting may hold such words too: only errors of libraries count.
        foreign = not isinstance(seen, OSError | KeyError | UserError)
        if foreign and any(sign in text for sign in _NO_MEMORY):
            return text.partition("\n")[0][:200]
        seen = seen.__cause__ or seen.__context__
    return None


def _keep(trace: str) -> str:
    """Writes a trace into the user's cache and returns the file's path, or the trace where nothing can be written."""
    folder = storage.user_cache() / "traces"
    file = folder / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}.txt"
    try:
        storage.make_folder(folder)
        storage.write_whole(file, trace)
    except (OSError, UserError):
        return "not kept, as no file can be written"
    return str(file)
