"""What image decoders print: libpng and libjpeg warn on C's `stderr`, without a file name and at every decoding.

With glibc, `stderr` is replaced by a stream of our own, whose writer runs on the thread that prints: what is printed
inside `collected` is kept for the caller, who knows the file, and all else goes where it went before. It costs nothing
while nobody prints. With other C libraries, the warnings stay as they are.
"""

import atexit
import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator

_UNBUFFERED = 2  # _IONBF of glibc
_WRITE = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_MOST = 10  # pieces of text that are kept of a file

_of_thread = threading.local()


class _Functions(ctypes.Structure):
    """cookie_io_functions_t of fopencookie(3)."""

    _fields_ = [("read", ctypes.c_void_p), ("write", _WRITE), ("seek", ctypes.c_void_p), ("close", ctypes.c_void_p)]


@contextlib.contextmanager
def collected() -> Iterator[None]:
    """Keeps what C code prints on this thread's stderr inside the block, for `take`, in place of what was kept before."""
    _of_thread.warnings = _of_thread.printed = []
    try:
        yield
    finally:
        _of_thread.printed = None


def take() -> list[str]:
    """The lines of the newest `collected` of this thread; none when asked again."""
    warnings, _of_thread.warnings = getattr(_of_thread, "warnings", None), None
    return _lines(warnings) if warnings else []


def _lines(printed: list[bytes]) -> list[str]:
    text = b"".join(printed).decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


@_WRITE
def _write(_, data, size):
    text, printed = ctypes.string_at(data, size), getattr(_of_thread, "printed", None)
    if printed is None:
        with contextlib.suppress(OSError):
            os.write(2, text)
    elif len(printed) < _MOST:
        printed.append(text)
    return size


def _replace_stderr() -> None:
    libc = ctypes.CDLL(None)
    libc.fopencookie.restype = ctypes.c_void_p
    libc.fopencookie.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _Functions]
    stderr = ctypes.c_void_p.in_dll(libc, "stderr")
    stream = libc.fopencookie(None, b"w", _Functions(None, _write, None, None))
    if stream:
        libc.setvbuf(ctypes.c_void_p(stream), None, _UNBUFFERED, ctypes.c_size_t(0))
        before, stderr.value = stderr.value, stream
        # Threads of C++ may print until the very end, when Python can no longer be called.
        atexit.register(setattr, stderr, "value", before)


with contextlib.suppress(AttributeError, OSError, ValueError):  # another C library
    _replace_stderr()
