"""The ways a command ends other than by success, and their exit codes."""


class UserError(Exception):
    """The user's input is wrong. The message is one line: the field, what is wrong, how to fix it. Exit code 2."""

    exit_code = 2


class RunStopped(Exception):
    """The run stopped itself to protect its result (non-finite loss, too many unreadable records). Exit code 3."""

    exit_code = 3


class Preempted(Exception):
    """The machine asked the process to end and the run has saved its state; the same command resumes. Exit code 75."""

    exit_code = 75


class ProcessLost(Exception):
    """Another process of the run is gone; the same command resumes from the last checkpoint. Exit code 75."""

    exit_code = 75


class Interrupted(Exception):
    """Someone pressed Ctrl-C. Exit code 130, as shells have it for SIGINT."""

    exit_code = 130


class Unforeseen(Exception):
    """An error that nothing in the package expects; its trace is kept in a file that the message names. Exit code 70."""

    exit_code = 70


def line(stop: Exception) -> str:
    """The one line that a command ends with."""
    return f"{'error' if stop.exit_code == 2 else 'stopped'}: {' '.join(str(stop).split())}"
