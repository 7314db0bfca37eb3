"""Times the train step of a stage, alone and fed by its input, and the input alone.

The step is the one that training runs, on random weights. No data is read unless the input is timed.
"""

import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core import hosts, partition
from mae_pp_jax.core.program import Program
from mae_pp_jax.core.stage import Stage
from mae_pp_jax.core.state import TrainState

WARM_UP_STEPS = 2  # not timed: the first steps wait for memory, caches and clocks
WINDOW_SECONDS = 0.1

Advance = Callable[[int], object]  # called with the number of steps just done, for a progress bar


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """What timing a train step on a batch that stays on the device gives.

    Attributes:
      compile_seconds: of the train step, compiled anew.
      window_steps: steps in a window; they are dispatched without waiting for one another, as in training.
      seconds: [windows], mean time of a step in each window.
      peak_bytes: largest memory in use on one device since the process began, or None where it does not tell.
    """

    compile_seconds: float
    window_steps: int
    seconds: np.ndarray
    peak_bytes: int | None


@dataclasses.dataclass(frozen=True)
class FedTimes:
    """What timing train steps with their input gives.

    Attributes:
      seconds: [steps], from the start of a step on the device to the start of the next.
      stalls: [steps], the part of `seconds` in which the device was done and the next batch was not there.
    """

    seconds: np.ndarray
    stalls: np.ndarray


class TrainStep:
    """A compiled train step, a state to run it on, and a synthetic batch that stays on the devices.

    Args:
      program: the stage laid out on a mesh.
    """

    def __init__(self, program: Program):
        self._program = program
        began = time.perf_counter()
        self._update = program.compile_to_run()
        self.compile_seconds = time.perf_counter() - began
        self._state = random_state(program)
        self._synthetic = synthetic_batch(program)

    def run(self, steps: int) -> float:
        """Seconds of `steps` steps on the synthetic batch, from an idle device to an idle device."""
        began = time.perf_counter()
        for _ in range(steps):
            self._state = self._update(self._state, self._synthetic)
        return _end_of(self._state) - began

    def time_alone(self, steps: int, advance: Advance) -> StepTimes:
        """Times at least `steps` steps on the synthetic batch."""
        estimate = min(self.run(1) for _ in range(WARM_UP_STEPS))
        # By the clock of process 0: all must run the same number of steps.
        window = hosts.from_first(lambda: max(1, min(steps, round(WINDOW_SECONDS / estimate))))
        seconds = []
        for _ in range(-(-steps // window)):
            seconds.append(self.run(window) / window)
            advance(window)
        memory = jax.local_devices()[0].memory_stats() or {}
        return StepTimes(self.compile_seconds, window, np.asarray(seconds), memory.get("peak_bytes_in_use"))

    def time_fed(self, steps: int, advance: Advance) -> FedTimes:
        """Times `steps` steps, each on the next batch of the stage's input, fetched while the step before runs."""
        batches = self._program.stage.train_batches(0)
        seconds, stalls = [], []
        with concurrent.futures.ThreadPoolExecutor(1) as watch:
            batch, began = self._fetch(batches)
            for step in range(WARM_UP_STEPS + steps):
                self._state = self._update(self._state, batch)
                end = watch.submit(_end_of, self._state)
                batch, fetched = self._fetch(batches)
                next_began = max(end.result(), fetched)
                if step >= WARM_UP_STEPS:
                    seconds.append(next_began - began)
                    stalls.append(next_began - end.result())
                    advance(1)
                began = next_began
        return FedTimes(np.asarray(seconds), np.asarray(stalls))

    def _fetch(self, batches: Iterator) -> tuple[dict, float]:
        """(the next batch, the time at which it lay on the devices)."""
        batch = partition.to_global(next(batches), self._program.mesh)
        return batch, _end_of(batch)


def time_input(stage: Stage, batches: int, prefetched: int, advance: Advance) -> np.ndarray:
    """Seconds of each of `batches` training batches, taken as fast as the input makes them.

    Args:
      stage: whose input.
      batches: how many are timed.
      prefetched: batches that the input makes ahead; so many are taken first, for they were made without a clock.
      advance: called with 1 after each timed batch.
    """
    stream = stage.train_batches(0)
    for _ in range(prefetched + 1):
        next(stream)
    seconds = []
    for _ in range(batches):
        began = time.perf_counter()
        next(stream)
        seconds.append(time.perf_counter() - began)
        advance(1)
    return np.asarray(seconds)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def random_state(program: Program) -> TrainState:
    """The state of a run from random weights, whatever the config starts from."""
    with jax.set_mesh(program.mesh):
        create = jax.jit(lambda key: program.first_state(program.stage.init(key)), out_shardings=program.shardings)
        return create(jax.random.key(program.stage.config.seed))


def synthetic_batch(program: Program) -> dict[str, jax.Array]:
    """A batch made on the devices: random images; other integers are 0, which is a class, tag and record everywhere."""
    shapes = program.stage.batch_spec()

    def create(key):
        return {
            name: jax.random.randint(key, spec.shape, 0, 256, spec.dtype)
            if spec.dtype == jnp.uint8
            else jnp.zeros(spec.shape, spec.dtype)
            for name, spec in shapes.items()
        }

    with jax.set_mesh(program.mesh):
        return jax.jit(create, out_shardings=partition.batch_sharding(program.mesh))(jax.random.key(0))


def _end_of(arrays) -> float:
    """The time at which all arrays are computed."""
    jax.block_until_ready(arrays)
    return time.perf_counter()
