"""Programs are made for the platform they are compiled for, which need not be the one at hand."""

import jax
import jax.numpy as jnp
import pytest

from mae_pp_jax.core import hardware
from mae_pp_jax.core.errors import RunStopped
from mae_pp_jax.models import vit


def test_auto_dtype_follows_the_platform_that_is_compiled_for():
    config = vit.VitConfig(size="Ti/4")
    assert vit.compute_dtype(config) == jnp.float32
    with hardware.compiling_for("tpu"):
        assert vit.compute_dtype(config) == jnp.bfloat16
    assert hardware.platform() == "cpu"


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"])
def test_clocks_of_tpus_agree_with_their_peaks(kind):
    """A matrix unit does a whole number of multiply-adds a cycle: peak / clock / 2 is a multiple of 128 · 128."""
    chip = hardware.CHIPS[kind]
    units = chip.flops / chip.clock / 2 / 128**2
    assert units == pytest.approx(round(units), rel=0.005)


def test_a_lack_of_memory_is_one_line_with_what_helps():
    with pytest.raises(RunStopped, match="out of memory.*global_batch.*microbatches.*remat") as device:
        with hardware.memory_errors():
            jax.block_until_ready(jnp.zeros(2**46))
    assert device.value.exit_code == 3
    with pytest.raises(RunStopped, match="out of memory"), hardware.memory_errors():
        raise MemoryError("Unable to allocate 51.5 GiB")
    with pytest.raises(jax.errors.JaxRuntimeError, match="of another kind"), hardware.memory_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: of another kind")
