"""What the chips can do, where it is published, and the settings every command starts JAX with."""

import os
import pathlib

import jax

# Dense bf16 matrix products, FLOP/s a device; vendors' data sheets.
PEAK_BF16_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "Tesla T4": 65e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """bf16 peak of a device in FLOP/s, or None where it is not known (CPUs among them)."""
    return PEAK_BF16_FLOPS.get(device.device_kind)


def enable_compilation_cache() -> None:
    """Compiled programs are kept on disk, so that a restart or a run that differs by seed compiles nothing.

    `JAX_COMPILATION_CACHE_DIR` names the folder; by default `~/.cache/mae_pp_jax/compiled`.
    """
    if jax.config.jax_compilation_cache_dir is None:
        home = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(home / "mae_pp_jax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
