"""The suite as an entry of a pipeline: judges the run of an earlier stage, in a folder of its own."""

import dataclasses
import logging
import time
from typing import ClassVar

import numpy as np

from mae_pp_jax.core import checkpoint, hosts, run_folder, storage
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.suites import image
from mae_pp_jax.suites.config import SuiteConfig

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is judged, and how.

    Attributes:
      run: folder of the earlier stage's run.
      config: of the suite.
    """

    stage: ClassVar[str] = "suite"
    run: str
    config: SuiteConfig


def run(entry: Entry, folder: storage.Path) -> dict:
    """Judges the run, or returns the result of before if it is of the same checkpoint.

    Writes `config.json`, `log.txt` and `result.json`: `metrics` (task → mean accuracy), `columns` as `image.judge`.

    Raises:
      UserError: the folder holds a suite of another config; what `image.judge` raises.
    """
    if hosts.count() > 1:
        raise UserError("config.stages: a suite needs a command of one process; leave it out of pipelines on many")
    source = storage.path(entry.run)
    step = checkpoint.find(source, field="config.stages")
    meta, sha256 = checkpoint.meta(source, step), checkpoint.sha256(source, step)
    config = config_lib.to_dict(entry.config)
    file = folder / "config.json"
    if storage.is_file(file):
        then = config_lib.to_dict(config_lib.resolve(SuiteConfig, storage.read_json(file)))
        if lines := config_lib.differences(SuiteConfig, then, config):
            raise UserError(
                f"--workdir: {folder} holds a suite with another config ({'; '.join(lines)}); remove that folder to "
                "judge anew, or give the config it was started with"
            )
    result = storage.read_json(folder / "result.json") if storage.is_file(folder / "result.json") else {}
    if result.get("checkpoint_sha256") == sha256:
        log.info("%s is finished; result.json holds its result", folder)
        return result
    with storage.writing(folder):
        storage.make_folder(folder)
    storage.write_json(file, config)
    with run_folder.log_to(folder):
        began = time.monotonic()
        found = image.judge(source, entry.config)
        earlier = dict(run=str(source), stage=meta["config"]["stage"], step=step)
        result = dict(
            found,
            stage=entry.stage,
            metrics={column["task"]: float(np.mean(column["values"]["accuracy"])) for column in found["columns"]},
            wall_seconds=time.monotonic() - began,
            seed=entry.config.seed,
            lineage=[*meta["lineage"], earlier],
            revision=run_folder.code_revision(),
        )
        storage.write_json(folder / "result.json", result)
    return result
