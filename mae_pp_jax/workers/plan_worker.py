"""The process in which `plan` compiles; started by `compilation.py`: `plan_worker REQUEST.json ANSWER.json`."""

import os
import sys
import threading

from mae_pp_jax.core import console, hardware, storage
from mae_pp_jax.core.errors import RunStopped, UserError
from mae_pp_jax.planning import measure, slices
from mae_pp_jax.stages import registry


def main(request: str, answer: str) -> None:
    """Measures what the file `request` names and writes the report, or why there is none, into the file `answer`."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    console.quiet_libraries()
    asked = storage.read_json(request)
    try:
        chosen = slices.parse(asked["topology"])
        with hardware.compiling_for(chosen.platform):  # a model takes its compute dtype from it when it is made
            stage = registry.create(registry.resolve(asked["config"]))
        ask = {"measure": measure.measure, "outline": measure.outline}[asked["ask"]]
        found = {"report": ask(stage, chosen)}
    except (UserError, RunStopped) as error:
        found = {"error": str(error), "exit_code": error.exit_code}
    storage.write_json(answer, found)


def _leave_with_parent() -> None:
    """Ends this process when the one that waits for its answer is gone, however that died."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
