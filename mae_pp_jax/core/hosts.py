"""One run on many processes: how they find each other, agree, and end together. A run of one process does none of it.

Process 0 writes all files but the arrays of checkpoints, and is the only one that prints. Messages between processes go
through the service that JAX's process 0 keeps (`jax.distributed`), not through the accelerators, so that they also
arrive while a collective operation waits for a process that is gone.
"""

import contextlib
import functools
import glob
import itertools
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # the service's client has no public name; orbax takes it from here too

from mae_pp_jax.core import console, failures
from mae_pp_jax.core.errors import ProcessLost, UserError, line

log = logging.getLogger(__name__)

JOIN_SECONDS = 300  # until a process gives up waiting for the others at the start
HEARTBEAT_SECONDS = 40  # without a sign of life until JAX takes a process for dead and ends the others
WAIT_SECONDS = 24 * 3600  # for process 0 to prepare a dataset; a process that dies meanwhile is noticed sooner
WATCH_SECONDS = 2.0  # between looks at whether another process has failed
LEAVE_SECONDS = 5  # for all to read why the run ends, before process 0 and its service are gone
PIECE_BYTES = 256 << 20  # of a gathered array, whole on every device at a time

_VERDICT = "mae_pp_jax/verdict"
_FLAGS = {  # flag → environment variable
    "--coordinator": "JAX_COORDINATOR_ADDRESS",
    "--processes": "JAX_NUM_PROCESSES",
    "--process": "JAX_PROCESS_ID",
}
# How failed collective operations read when the process at the other end is gone: gloo (CPU), NCCL (GPU), the service.
_LOST = ("gloo", "nccl", "connection reset", "connection closed", "socket closed", "coordination service", "heartbeat")

_rounds = itertools.count()  # every process asks and tells in the same order
_last_acts: list[Callable[[], None]] = []  # of this process, where another one ends it
_ending = threading.Lock()  # taken once, by the thread that ends this process


def add_arguments(parser) -> None:
    """Adds the flags that say which one of several processes this is."""
    group = parser.add_argument_group(
        "many hosts",
        "Start the same command once per process. On TPU pods, Slurm and Open MPI each process knows its number; "
        "elsewhere give all three, or launch/local.sh does. Environment: " + ", ".join(_FLAGS.values()) + ".",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is reached by the others")
    group.add_argument("--processes", metavar="N", help="how many processes there are in all")
    group.add_argument("--process", metavar="I", help="which of them this is, from 0")
    group.add_argument(
        "--join_timeout",
        type=int,
        default=JOIN_SECONDS,
        metavar="SECONDS",
        help=f"seconds to wait for the others at the start (default: {JOIN_SECONDS})",
    )


@contextlib.contextmanager
def together(args) -> Iterator[None]:
    """Joins the processes of a run for a block; an error of one of them ends all, with one line of process 0.

    Args:
      args: parsed arguments of `add_arguments`.

    Raises:
      UserError: the flags do not fit, or not all processes came in time.
    """
    join(args.coordinator, args.processes, args.process, args.join_timeout)
    if count() == 1:
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(done,), daemon=True)
    watcher.start()
    try:
        yield
        barrier()  # none is done while another may still fail
    except BaseException as error:
        _end(*_verdict(error))
    done.set()
    watcher.join()


def join(coordinator: str | None, processes: str | None, process: str | None, timeout: int = JOIN_SECONDS) -> None:
    """Connects this process to the others of its run, where there are others; must come before any use of a device.

    Without flags, their environment variables or a cluster that JAX knows, this does nothing.

    Args:
      coordinator: HOST:PORT of process 0, or None.
      processes: their number, or None.
      process: which one this is, or None.
      timeout: seconds to wait for the others.

    Raises:
      UserError: flags that are wrong or not complete, a port that is taken, or a cluster that does not let us in.
    """
    values = dict(zip(_FLAGS, (coordinator, processes, process), strict=True))
    given = {flag: value or os.environ.get(_FLAGS[flag]) for flag, value in values.items()}
    cluster = None if all(given.values()) else _cluster()
    if cluster is None and not any(given.values()):
        return
    where, number, index = _checked(given, cluster)
    if number == 1:
        return
    if index == 0 and where:
        _check_port(int(where.rpartition(":")[2]))
    limit = threading.Timer(timeout, _give_up, (where or cluster, number, index, timeout))
    limit.daemon = True
    limit.start()
    try:
        jax.distributed.initialize(
            where,
            number,
            index,
            initialization_timeout=timeout + 60,  # JAX ends the process with a stack trace: ours comes first
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=60,
        )
    except (RuntimeError, ValueError, OSError) as error:
        # JAX does not find the cluster that there seemed to be: a TPU machine on its own.
        if cluster and "coordinator_address should be defined" in str(error):
            return
        raise UserError(f"--coordinator: cannot join {where or cluster}: {str(error).splitlines()[0]}") from error
    finally:
        limit.cancel()
    if not first():
        console.only_warnings()
    log.info("%d processes, %d devices each", count(), jax.local_device_count())


def _checked(given: dict[str, str | None], cluster: str | None) -> tuple[str | None, int | None, int | None]:
    """(coordinator, number, index) out of what flags and environment say; None is for JAX to find out."""
    missing = [flag for flag, value in given.items() if not value]
    if missing and not cluster:
        raise UserError(
            f"{missing[0]}: missing; {', '.join(given)} go together (or {', '.join(_FLAGS.values())} in the environment)"
        )
    where = given["--coordinator"]
    host, _, port = (where or "").rpartition(":")
    if where and not (host and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"--coordinator: {where} is not HOST:PORT, such as 10.0.0.1:12345")
    numbers = {}
    for flag, lowest in (("--processes", 1), ("--process", 0)):
        text = given[flag]
        if text and not (text.isdigit() and int(text) >= lowest):
            raise UserError(f"{flag}: {text} is not a whole number from {lowest}")
        numbers[flag] = int(text) if text else None
    number, index = numbers.values()
    if number is not None and index is not None and index >= number:
        raise UserError(f"--process: {index} is not one of {number} processes, which count from 0 to {number - 1}")
    return where, number, index


def _cluster() -> str | None:
    """Whether a cluster started this process as one of several; JAX then knows how to ask it for the rest."""
    env = os.environ
    if "SLURM_STEP_NODELIST" in env and _number("SLURM_NTASKS") > 1:
        return "Slurm"
    if _number("OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    if (
        "," in env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES", ""))
        or _number("MEGASCALE_NUM_SLICES") > 1
    ):
        return "TPU slice"
    if "tpu" in env.get("JAX_PLATFORMS", "tpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):
        return "TPU machine"
    return None


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else 1


def _check_port(port: int) -> None:
    """Checks that the port is free, as JAX's service would abort the process otherwise."""
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"--coordinator: cannot listen on port {port}: {error.strerror}; give a free one"
            ) from error


def _give_up(where: str, number: int | None, index: int | None, timeout: int) -> NoReturn:
    """Ends a process whose wait timed out; the connection is made in C++, which no exception can interrupt."""
    if index == 0:
        problem = f"--processes: not all {number} processes came to {where}"
    else:
        problem = f"--coordinator: no answer from all processes at {where}"
    print(
        f"error: {problem} within {timeout} s; start every process with the same --coordinator and --processes, and "
        "see that the port is open between the machines",
        file=sys.stderr,
        flush=True,
    )
    os._exit(UserError.exit_code)


def count() -> int:
    """Number of processes; asks no device where this run has not been joined."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def first() -> bool:
    """Whether this is process 0, which writes files and talks."""
    return count() == 1 or jax.process_index() == 0


def _client():
    return distributed.global_state.client


def from_first(make: Callable[[], Any]) -> Any:
    """What `make()` returns on process 0, on every process: files may look different from elsewhere, or later.

    The value must be JSON. An exception of `make` ends all processes.
    """
    if count() == 1:
        return make()
    key = f"mae_pp_jax/told/{next(_rounds)}"
    if first():
        _client().key_value_set(key, json.dumps(make()))
    return json.loads(_client().blocking_key_value_get(key, WAIT_SECONDS * 1000))


def check_same(field: str, value: Any, fix: str) -> None:
    """Raises `UserError` on a process where a JSON value differs from that of process 0."""
    if count() > 1 and from_first(lambda: value) != json.loads(json.dumps(value)):
        raise UserError(f"{field}: process {jax.process_index()} has another one than process 0; {fix}")


def everyone(value: Any) -> list:
    """The JSON values that all processes give, in the order of the processes, on every process."""
    if count() == 1:
        return [value]
    key = f"mae_pp_jax/said/{next(_rounds)}"
    _client().key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    return [json.loads(_client().blocking_key_value_get(f"{key}/{i}", WAIT_SECONDS * 1000)) for i in range(count())]


def barrier() -> None:
    """Waits for all processes."""
    if count() > 1:
        _client().wait_at_barrier(f"mae_pp_jax/barrier/{next(_rounds)}", WAIT_SECONDS * 1000)


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """Process 0 runs a block first, then all others at once: they find on storage what it made."""
    if not first():
        barrier()
    yield
    if first():
        barrier()


def gather(tree):
    """A pytree of global arrays as numpy arrays, whole on every process; all processes must call it."""
    return jax.tree.map(lambda leaf: np.concatenate(list(pieces(leaf))) if leaf.ndim else np.asarray(leaf), tree)


def pieces(leaf: jax.Array) -> Iterator[np.ndarray]:
    """A global array as numpy arrays, whole on every process, cut along its first axis into pieces of bounded size.

    Args:
      leaf: an array of any sharding; a scalar is one piece. All processes must go through all pieces.
    """
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        yield np.asarray(leaf)
        return
    rows, row_bytes = leaf.shape[0], leaf.nbytes // leaf.shape[0]
    step = next(n for n in range(rows, 0, -1) if rows % n == 0 and (n == 1 or n * row_bytes <= PIECE_BYTES))
    cut = _cutter(leaf.sharding.mesh, step)
    for start in range(0, rows, step):
        yield np.asarray(cut(leaf, start))


@functools.cache
def _cutter(mesh: jax.sharding.Mesh, step: int):
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(lambda leaf, start: jax.lax.dynamic_slice_in_dim(leaf, start, step), out_shardings=whole)


@contextlib.contextmanager
def before_end(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` when the failure of another process ends this one within the block, as no `finally` runs then."""
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


def tell(_, error: BaseException | None, __) -> None:
    """Lets all processes know at once why this one fails; for `ExitStack.push`, ahead of cleaning up.

    Cleaning up may wait for processes that in turn wait for this one.
    """
    if error is not None and count() > 1:
        _verdict(error)


def _verdict(error: BaseException) -> tuple[int, str]:
    """(exit code, line) of the first process that failed, which may be this one."""
    code, said = _explained(error)
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was first
        _client().key_value_set(_VERDICT, json.dumps([code, said]))
    try:
        return tuple(json.loads(_client().key_value_try_get(_VERDICT)))
    except jax.errors.JaxRuntimeError:  # the service is gone, and process 0 with it
        _say(said)
        return code, said


def _explained(error: BaseException) -> tuple[int, str]:
    """Exit code and line for an exception of any kind."""
    if _is_lost(error):
        time.sleep(1.5 * WATCH_SECONDS)  # the process that is gone may have said why; then `_watch` ends this one
        reason = str(error).strip().splitlines()[0].rpartition(": ")[2]
        error = ProcessLost(
            f"a process of this run is gone ({reason[:200]}); the same command resumes from the last checkpoint"
        )
    if hasattr(error, "exit_code"):
        return error.exit_code, line(error)
    stop = failures.explained(error)
    return stop.exit_code, line(type(stop)(f"process {jax.process_index()}: {stop}"))


def _is_lost(error: BaseException) -> bool:
    """Whether an exception says that another process is gone; JAX raises them as ValueError or JaxRuntimeError."""
    known = isinstance(error, ValueError | jax.errors.JaxRuntimeError)
    return known and any(sign in str(error).lower() for sign in _LOST)


def _watch(done: threading.Event) -> None:
    """Ends this process when another one has failed."""
    while not done.wait(WATCH_SECONDS):
        try:
            verdict = json.loads(_client().key_value_try_get(_VERDICT))
        except jax.errors.JaxRuntimeError:  # none yet; where the service is gone, JAX ends the process
            continue
        _end(*verdict)


def _end(code: int, said: str) -> NoReturn:
    """Ends this process once all know why, without JAX's orderly shutdown, which waits for processes that are gone."""
    _ending.acquire()  # never released: another thread that comes here waits for the end
    if first() and said:
        _say(said)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().wait_at_barrier("mae_pp_jax/left", LEAVE_SECONDS * 1000)
    if first():
        time.sleep(1)  # the others are gone before the service is
    for act in reversed(_last_acts):
        with contextlib.suppress(Exception):
            act()
    logging.shutdown()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _say(text: str) -> None:
    """Prints to stderr if it is still open: a process must also end when nobody reads it."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
