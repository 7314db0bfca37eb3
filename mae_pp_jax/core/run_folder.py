"""The folder of a run: who may use it, and its files `config.json`, `metrics.jsonl`, `log.txt`, `result.json`."""

import hashlib
import json
import logging
import os
import pathlib
import subprocess
from collections.abc import Mapping

import jax
import numpy as np

import mae_pp_jax
from mae_pp_jax.core import checkpoint, config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten


class RunFolder:
    """One run's folder. Nothing is written before `create`, so that a refused run leaves nothing behind."""

    def __init__(self, path: str | os.PathLike, config):
        """Looks at the folder.

        Raises:
          UserError: the folder holds a run with another config (the differing keys are named), is not a folder or
            holds files that no run wrote.
        """
        self.path = pathlib.Path(path)
        self._config = config_lib.to_dict(config)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir: {self.path} is a file; give a folder")
        written = self.path / "config.json"
        if written.is_file():
            lines = config_lib.differences(type(config), json.loads(written.read_text()), self._config)
            if lines:
                raise UserError(
                    f"--workdir: {self.path} holds a run with another config ({'; '.join(lines)}); "
                    "give another folder, or the config it was started with"
                )
        elif self.path.is_dir() and checkpoint.steps(self.path / "checkpoints"):
            raise UserError(f"--workdir: {self.path} holds checkpoints without a config.json; give another folder")

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    def result(self) -> dict | None:
        """The content of `result.json`, or None while the run is not finished."""
        path = self.path / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def create(self) -> None:
        """Makes the folder and writes the config.

        Raises:
          UserError: it cannot be written.
        """
        if jax.process_index() != 0:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "config.json", self._config)
        except OSError as error:
            raise UserError(f"--workdir: cannot write to {self.path}: {error.strerror}; choose another folder") from error

    def write_result(self, result: dict) -> None:
        if jax.process_index() == 0:
            write_json(self.path / "result.json", result)


def write_json(path: pathlib.Path, value) -> None:
    """Writes whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def attach_log(path: pathlib.Path) -> logging.Handler:
    """Plain lines of everything logged also go to `log.txt`; the caller removes the handler."""
    handler = logging.FileHandler(path / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger("mae_pp_jax").addHandler(handler)
    return handler


def params_sha256(params: Mapping) -> str:
    """SHA-256 over path, dtype, shape and bytes of every parameter in path order."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        value = np.asarray(jax.device_get(leaf))
        digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def code_revision() -> str:
    """Package version and, in a git checkout, its commit with a mark for uncommitted changes."""
    root = pathlib.Path(__file__).resolve().parents[2]
    revision = mae_pp_jax.__version__
    if (root / ".git").exists():
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True
        )
        if described.returncode == 0:
            revision += "+" + described.stdout.strip()
    return revision
