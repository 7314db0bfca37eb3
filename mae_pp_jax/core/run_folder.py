"""The folder of a run: who may use it, and its files `config.json`, `metrics.jsonl`, `log.txt`, `result.json`."""

import contextlib
import logging
import os
import subprocess
import traceback
from collections.abc import Iterator, Mapping

import mae_pp_jax
from mae_pp_jax.core import checkpoint, hosts, leaves, storage
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten


class RunFolder:
    """One run's folder. Nothing is written before `create`, so that a refused run leaves nothing behind.

    Attributes:
      renamed: `key: old → new` of keys that are known by their content (datasets, runs) and are named otherwise in the
        config that the folder holds; it is for the caller to compare what they name.
    """

    def __init__(self, path: str | os.PathLike, config):
        """Looks at the folder.

        Raises:
          UserError: the folder holds a run with another config (the differing keys are named), is not a folder
            of this machine or holds checkpoints without a config.
        """
        self.path = storage.path(path)
        self.renamed: list[str] = []
        self._schema, self._config = type(config), config_lib.to_dict(config)
        self.look()

    def look(self) -> None:
        """Looks at what is in the folder; raises as the constructor."""
        if storage.exists(self.path) and not storage.is_dir(self.path):
            raise UserError(f"--workdir: {self.path} is a file; give a folder")
        written = self.path / "config.json"
        if storage.is_file(written):
            # Under today's schema: keys that are new since have their defaults.
            then = config_lib.resolve(self._schema, self._schema.upgrade(storage.read_json(written)))
            then = config_lib.to_dict(then)
            self.renamed = config_lib.differences(self._schema, then, self._config, by_content=True)
            if lines := config_lib.differences(self._schema, then, self._config):
                raise UserError(
                    f"--workdir: {self.path} holds a run with another config ({'; '.join(lines)}); "
                    "give another folder, or the config it was started with"
                )
        elif checkpoint.steps(self.path / "checkpoints"):
            raise UserError(f"--workdir: {self.path} holds checkpoints without a config.json; give another folder")

    @property
    def checkpoints(self) -> storage.Path:
        return self.path / "checkpoints"

    def result(self) -> dict | None:
        """The content of `result.json`, or None while the run is not finished."""
        path = self.path / "result.json"
        return hosts.from_first(lambda: storage.read_json(path) if storage.is_file(path) else None)

    def create(self, documents: Mapping[str, str] | None = None) -> None:
        """Makes the folder and writes the config, and texts under their names relative to it.

        Raises:
          UserError: it cannot be written.
        """
        if not hosts.first():
            return
        with storage.writing(self.path):
            made = storage.make_folder(self.path)
        try:
            storage.write_json(self.path / "config.json", self._config)
        except UserError:
            storage.remove_empty(made)
            raise
        for name, text in (documents or {}).items():
            self.write_file(name, text.encode())

    def write_file(self, name: str, content: bytes) -> None:
        """Writes a file beside the run's own, such as a drawing; `name` is relative to the folder."""
        if hosts.first():
            with storage.writing(self.path / name):
                storage.make_folder((self.path / name).parent)
            storage.write_whole(self.path / name, content)

    def write_result(self, result: dict) -> None:
        if hosts.first():
            storage.write_json(self.path / "result.json", result)


@contextlib.contextmanager
def log_to(path: storage.Path) -> Iterator[None]:
    """Plain lines of all that process 0 logs also go to `log.txt`, and at the end why the run stopped, if it did."""
    if not hosts.first():
        yield
        return
    ours = logging.getLogger("mae_pp_jax")
    with storage.writing(path / "log.txt"):
        file = storage.appending(path / "log.txt")
    handler = _FileLog(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%d %H:%M:%S"))
    ours.setLevel(logging.DEBUG)  # also where nobody watches, as when a notebook calls `train`
    ours.addHandler(handler)
    try:
        yield
    except Exception as error:
        ours.debug("%s: %s", type(error).__name__, error)
        if not hasattr(error, "exit_code"):
            ours.debug("%s", "".join(traceback.format_exception(error)))
            error.trace_file = path / "log.txt"
        raise
    finally:
        ours.removeHandler(handler)
        with contextlib.suppress(OSError):
            file.close()


class _FileLog(logging.StreamHandler):
    """Drops lines when the disk is full: the row or checkpoint that follows stops the run and says so."""

    def handleError(self, record):
        pass


def params_sha256(params: Mapping) -> str:
    """SHA-256 over path, dtype, shape and bytes of every parameter in path order; all processes must take part."""
    return leaves.sha256(flatten(params), hosts.pieces)


def code_revision() -> str:
    """Package version and, in a git checkout, its commit with a mark for uncommitted changes."""
    root = storage.absolute(__file__).parents[2]
    revision = mae_pp_jax.__version__
    if storage.exists(root / ".git"):
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # a machine without git
            described = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
            if described.returncode == 0:
                revision += "+" + described.stdout.strip()
    return revision
