"""All tests run on the CPU with eight simulated devices; compiled programs are shared between tests and runs."""

import atexit
import os
import pathlib
import shutil
import tempfile

_SCRATCH = pathlib.Path(tempfile.gettempdir()) / f"mae_pp_jax_tests_{os.getuid()}"
os.environ["JAX_PLATFORMS"] = "cpu"
# Level 0 halves the compiler's time; the demo and the README's figures use the default level.
_QUICK = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {_QUICK}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_SCRATCH / "compiled"))
os.environ.setdefault("TFDS_DATA_DIR", str(_SCRATCH / "tfds"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# A cache is found by its dataset's fingerprint; those of datasets that tests make up are of no use to anybody else.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

import subprocess  # noqa: E402
import sys  # noqa: E402

import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]

# A run of seconds: 8×8 digits in 4 patches, two narrow blocks.
TINY = {
    "global_batch": "32",
    "train_for": "12 steps",
    "log_every": "2 steps",
    "eval_every": "6 steps",
    "checkpoint.every": "4 steps",
    "tensorboard": "false",
    "model.size": "Ti/4",
    "model.width": "16",
    "model.depth": "2",
    "model.heads": "2",
}
TINY_MAE = {**TINY, "mae.decoder_width": "16", "mae.decoder_depth": "1", "mae.decoder_heads": "2"}

RECIPES = {
    "mae": TINY_MAE,
    "wsp": TINY,
    "classify": TINY,
    "linear": TINY,
    "low_shot": {**TINY, "global_batch": "40", "shots": "2"},
}


def arguments(overrides: dict[str, str]) -> list[str]:
    """Overrides as they stand on a command line."""
    return [f"--config.{name}={value}" for name, value in overrides.items()]


def command(*args: str, devices: int = 1, **kwargs) -> subprocess.CompletedProcess:
    """Runs `python -m mae_pp_jax ARGS` as a user does and captures what it prints."""
    return subprocess.run(
        [sys.executable, "-m", "mae_pp_jax", *args],
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=300,
        **kwargs,
    )


def environment(devices: int = 1) -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {_QUICK}"}


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    return ROOT


@pytest.fixture(scope="session")
def mae_run(tmp_path_factory) -> pathlib.Path:
    """The folder of a finished tiny MAE run."""
    from mae_pp_jax.commands.train import train

    folder = tmp_path_factory.mktemp("runs") / "mae"
    train(str(ROOT / "configs/mae/digits.py"), folder, TINY_MAE)
    return folder
