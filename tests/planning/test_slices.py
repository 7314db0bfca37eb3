"""Names of slices, and the environment in which they are compiled for."""

import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.planning import slices


@pytest.mark.parametrize(
    "name, devices, platform",
    [
        ("v5p:4x4x8", 128, "tpu"),
        ("v5e:16x16", 256, "tpu"),
        ("2*v5e:16x16", 512, "tpu"),
        ("tpu7x:2x2x1", 8, "tpu"),  # two devices a chip
        ("cpu:8", 8, "cpu"),
    ],
)
def test_names(name, devices, platform):
    chosen = slices.parse(name)
    assert (chosen.devices, chosen.platform) == (devices, platform)


@pytest.mark.parametrize(
    "name, said",
    [
        ("v5p", "write CHIP:SHAPE"),
        ("v5p:4×4×8", "write CHIP:SHAPE"),
        ("v9:4x4", "names no chip"),
        ("v5e:0x8", "at least 1"),
        ("cpu:2x4", "write their number"),
    ],
)
def test_wrong_names_are_told_in_one_line(name, said):
    with pytest.raises(UserError, match=said) as error:
        slices.parse(name)
    assert str(error.value).startswith("--topology:") and "\n" not in str(error.value)


def test_the_compilers_environment_hides_the_machine():
    env = slices.environment(slices.parse("v5p:4x4x8"), {"JAX_PLATFORMS": "tpu", "HOME": "/h"})
    assert env["JAX_PLATFORMS"] == "cpu" and env["TPU_SKIP_MDS_QUERY"] == "1" and env["HOME"] == "/h"
    cpu = slices.environment(slices.parse("cpu:4"), {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"})
    assert cpu["XLA_FLAGS"].endswith("device_count=4")  # the last one holds


def test_a_missing_compiler_names_the_extra():
    if slices.libtpu_installed():
        pytest.skip("libtpu is installed here")
    with pytest.raises(UserError, match=r"\[tpu\]"):
        slices.devices(slices.parse("v5e:2x2"))
