"""How a process ended, as text."""

import signal


def cause(code: int) -> str:
    """Why a process ended without an answer, in a few words.

    Args:
      code: its exit code, or minus the number of the signal that ended it, as `subprocess` and `multiprocessing` say.
    """
    if code == -signal.SIGKILL:
        return "was killed (out of memory?)"
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
