"""Compiles in a process of its own: its environment is set before JAX starts, and its death is reported as a result."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

import tqdm

from mae_pp_jax.core import console
from mae_pp_jax.core.errors import RunStopped, UserError
from mae_pp_jax.planning import slices
from mae_pp_jax.workers import ending

WORKER = "mae_pp_jax.workers.plan_worker"
POLL_SECONDS = 0.2


@dataclasses.dataclass
class Compilation:
    """One compilation in a process of its own, under way or done; leave its `with` block to end it."""

    config: Mapping
    chosen: slices.Slice
    ask: str = "measure"  # or "outline": the function of `measure.py` that answers

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="plan-")
        folder = pathlib.Path(self._folder.name)
        self._answer, self._said = folder / "answer.json", folder / "stderr"
        (folder / "request.json").write_text(
            json.dumps(dict(ask=self.ask, config=self.config, topology=self.chosen.name))
        )
        self.began = time.monotonic()
        with self._said.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER, str(folder / "request.json"), str(self._answer)],
                env=slices.environment(self.chosen, dict(os.environ)),
                stdin=subprocess.PIPE,  # closes when this process dies, however that happens; the worker then leaves
                stdout=stderr,
                stderr=stderr,
            )
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def done(self) -> bool:
        return self._process.poll() is not None

    def report(self) -> dict:
        """What `measure` found; only when done.

        Raises:
          UserError: what the config or the slice did wrong.
          RunStopped: the compiler died or gave up.
        """
        answer = json.loads(self._answer.read_text()) if self._answer.is_file() else {}
        if "report" in answer:
            return answer["report"]
        if "error" in answer:
            kinds = {error.exit_code: error for error in (UserError, RunStopped)}
            raise kinds[answer["exit_code"]](answer["error"])
        raise RunStopped(f"the compiler for {self.chosen.name} {self._cause()}")

    def _cause(self) -> str:
        """Why the worker ended without an answer, in one line that names the file with all that it printed."""
        cause, said = ending.cause(self._process.returncode), self._said.read_text(errors="replace")
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        if self._process.returncode == -signal.SIGKILL or not lines:
            return cause
        with tempfile.NamedTemporaryFile("w", prefix="plan-", suffix=".txt", delete=False) as kept:
            kept.write(said)
        return f"{cause}: {lines[-1][:300]} (all that it printed: {kept.name})"


def answer(config: Mapping, chosen: slices.Slice, ask: str = "measure") -> dict:
    """The answer for one config on one slice, with the time gone by on a terminal."""
    doing = "compiling, usually 1 to 4 minutes" if ask == "measure" else "reading the model's shapes"
    bar = f"{chosen.name}: {doing}: {{elapsed}}"
    with (
        Compilation(config, chosen, ask) as work,
        tqdm.tqdm(bar_format=bar, disable=not console.on_terminal(), leave=False) as elapsed,
    ):
        while not work.done:
            time.sleep(POLL_SECONDS)
            elapsed.refresh()
        return work.report()
