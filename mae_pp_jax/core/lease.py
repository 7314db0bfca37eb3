"""One owner per run folder: `RUN/lease/N.json` says which process owns it; the highest N is the owner.

A lease is taken by making the next file, of which the storage lets one process alone succeed; no file lock is needed,
so it works on shared storage. The owner rewrites its file every few seconds. An owner that is known dead, or has not
written for long, loses the folder to the next process that asks; one that was only paused notices before it saves.
"""

import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from mae_pp_jax.core import hosts, storage
from mae_pp_jax.core.errors import RunStopped, UserError

log = logging.getLogger(__name__)

BEAT_SECONDS = 15.0  # between signs of life
STALE_SECONDS = 90.0  # without one until an owner on another machine is taken for dead


@contextlib.contextmanager
def hold(run: storage.Path, key: str = "--workdir") -> Iterator[Callable[[], None]]:
    """Owns a run folder for a block; it and the folders above it are made, and removed again where they stay empty.

    Process 0 alone takes the lease; its refusal ends all processes.

    Yields:
      A function that raises `RunStopped` on process 0 when this run has lost the folder meanwhile.

    Raises:
      UserError: another process owns the folder, or it cannot be written; nothing was written.
    """
    lease = _Lease(run, key)
    with contextlib.ExitStack() as cleanup:
        if hosts.first():
            cleanup.callback(lease.release)
            cleanup.enter_context(hosts.before_end(lease.release))
        hosts.from_first(lease.take)
        yield lease.check if hosts.first() else lambda: None


class _Lease:
    """The lease of this process on one folder."""

    def __init__(self, run: storage.Path, key: str):
        self._run, self._folder, self._key = run, run / "lease", key
        self._me = dict(host=socket.gethostname(), pid=os.getpid(), machine=_machine(), process_began=_began("self"))
        self._me |= dict(token=uuid.uuid4().hex, started=time.time())
        self._number = 0
        self._made: list[storage.Path] = []
        self._released = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def take(self) -> None:
        with storage.writing(self._run, self._key):
            while not self._number:
                self._made += storage.make_folder(self._folder)
                number, owner = _owner(self._folder)
                if owner and _alive(self._folder, number, owner):
                    raise UserError(
                        f"{self._key}: {self._run} is in use by {_name(owner)}; wait for its end or stop it, or give "
                        "another folder"
                    )
                # Not there: the last owner has removed the folder meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    if storage.create(self._file(number + 1), self._text(), self._me["token"]):
                        self._number = number + 1
                        self._remove_up_to(number)
                        if owner:
                            log.info("%s: taken over from %s, which is gone", self._run, _name(owner))
        self._beating.start()

    def check(self) -> None:
        """Raises `RunStopped` when another process has taken the folder over."""
        number, owner = _owner(self._folder)
        if (number, owner.get("token")) != (self._number, self._me["token"]):
            by = f"was taken over by {_name(owner)}" if owner else "was given up or removed"
            raise RunStopped(
                f"{self._run} {by} while this process was paused or cut off from it; nothing more is written, the "
                "other run goes on"
            )

    def release(self) -> None:
        if self._released.is_set():
            return
        self._released.set()
        if self._number:
            self._beating.join()
            with contextlib.suppress(RunStopped, OSError, UserError):
                self.check()
                self._remove_up_to(self._number)
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)
        storage.remove_empty(self._made)

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            try:
                self.check()
                storage.write_whole(self._file(self._number), self._text())
            except RunStopped:
                return
            except (OSError, UserError) as error:  # storage out of reach or full: the run will find out and say so
                log.debug("the lease of %s cannot be renewed: %s", self._run, error)

    def _file(self, number: int) -> storage.Path:
        return self._folder / f"{number}.json"

    def _text(self) -> str:
        return json.dumps({**self._me, "beat": time.time()})

    def _remove_up_to(self, number: int) -> None:
        """Removes leases that are no longer valid, and what killed processes left half-written."""
        for name in storage.names(self._folder):
            if name.endswith(".tmp") or (name[:-5].isdigit() and int(name[:-5]) <= number):
                storage.remove(self._folder / name)


def _numbers(folder: storage.Path) -> list[int]:
    return sorted(int(name[:-5]) for name in storage.names(folder) if name.endswith(".json") and name[:-5].isdigit())


def _owner(folder: storage.Path) -> tuple[int, dict]:
    """(number, content) of the highest lease, (0, {}) where there is none."""
    while numbers := _numbers(folder):
        file = folder / f"{numbers[-1]}.json"
        with contextlib.suppress(FileNotFoundError):  # released meanwhile
            try:
                content = json.loads(storage.read_bytes(file))
            except ValueError:  # half-written, on a file system without links
                content = {}
            return numbers[-1], {"beat": storage.modified(file), **content}
    return 0, {}


def _alive(folder: storage.Path, number: int, owner: dict) -> bool:
    """Whether an owner is still at work: it has given a sign of life lately and, on this machine, its process is there.

    For a process on another machine that gave one lately, this waits for the next one.
    """
    if time.time() - owner["beat"] >= STALE_SECONDS:
        return False
    if owner.get("machine") == _machine() and "pid" in owner:
        began = _began(owner["pid"])
        return began is not None and began == owner.get("process_began")
    log.info("waiting for up to %.0f s to see whether %s is still at work", STALE_SECONDS, _name(owner))
    end = time.monotonic() + STALE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, BEAT_SECONDS))
        now = _owner(folder)
        if now != (number, owner):
            return bool(now[1])
    return False


def _machine() -> str:
    """What two processes share that can see each other: this start of the machine and, in containers, the container."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no /proc
        return socket.gethostname()


def _began(pid: int | str) -> str | None:
    """When a process of this machine began, in a form to compare; None where it is gone."""
    try:
        state, *fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except OSError:
        if pathlib.Path("/proc/self/stat").exists():
            return None
    try:  # no /proc, as on macOS: whether there is a process of that number is all that can be known
        os.kill(os.getpid() if pid == "self" else int(pid), 0)
        return "running"
    except OSError as error:
        return "running" if isinstance(error, PermissionError) else None


def _name(owner: dict) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.get("started", owner["beat"])))
    return f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')} since {since}"
