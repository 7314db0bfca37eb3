"""The folder of a run: who may use it, and its files `config.json`, `metrics.jsonl`, `log.txt`, `result.json`."""

import contextlib
import hashlib
import logging
import os
import pathlib
import subprocess
from collections.abc import Iterator, Mapping

import mae_pp_jax
from mae_pp_jax.core import checkpoint, disk, hosts
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten


class RunFolder:
    """One run's folder. Nothing is written before `create`, so that a refused run leaves nothing behind."""

    def __init__(self, path: str | os.PathLike, config):
        """Looks at the folder.

        Raises:
          UserError: the folder holds a run with another config (the differing keys are named), is not a folder
            of this machine or holds checkpoints of nobody knows what.
        """
        self.path = disk.local(path)
        self._config = config_lib.to_dict(config)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir: {self.path} is a file; give a folder")
        written = self.path / "config.json"
        if written.is_file():
            lines = config_lib.differences(type(config), disk.read_json(written), self._config)
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
        return hosts.from_first(lambda: disk.read_json(path) if path.is_file() else None)

    def create(self) -> None:
        """Makes the folder and writes the config.

        Raises:
          UserError: it cannot be written.
        """
        if not hosts.first():
            return
        new = not self.path.exists()
        with disk.writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            disk.write_json(self.path / "config.json", self._config)
        except UserError:
            if new:
                self.path.rmdir()
            raise

    def write_drawing(self, name: str, content: bytes) -> None:
        """Writes a file of a drawing; `name` is relative to the folder."""
        if hosts.first():
            with disk.writing(self.path / name):
                (self.path / name).parent.mkdir(exist_ok=True)
            disk.write_whole(self.path / name, content)

    def write_result(self, result: dict) -> None:
        if hosts.first():
            disk.write_json(self.path / "result.json", result)


@contextlib.contextmanager
def log_to(path: pathlib.Path) -> Iterator[None]:
    """Plain lines of all that process 0 logs also go to `log.txt`, and at the end why the run stopped, if it did."""
    if not hosts.first():
        yield
        return
    ours = logging.getLogger("mae_pp_jax")
    with disk.writing(path / "log.txt"):
        handler = _FileLog(path / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%d %H:%M:%S"))
    ours.setLevel(logging.DEBUG)  # also where nobody watches, as when a notebook calls `train`
    ours.addHandler(handler)
    try:
        yield
    except Exception as error:
        ours.debug("%s: %s", type(error).__name__, error)
        raise
    finally:
        ours.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


class _FileLog(logging.FileHandler):
    """Loses lines where the disk is full: the row or checkpoint that follows stops the run and says so."""

    def handleError(self, record):
        pass


def params_sha256(params: Mapping) -> str:
    """SHA-256 over path, dtype, shape and bytes of every parameter in path order; all processes must take part."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        digest.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
        for piece in hosts.pieces(leaf):
            digest.update(piece.tobytes())
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
