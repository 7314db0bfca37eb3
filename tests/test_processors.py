"""The numeric tests under the instruction sets of other processors."""

import os
import platform
import subprocess
import sys

import pytest

NUMERIC = ["tests/models", "tests/ops", "tests/core/test_optim.py"]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the flag names instruction sets of x86")
@pytest.mark.parametrize("instructions", ["AVX2", "SSE4_2"])
def test_numeric_tests_hold_on_other_processors(root, instructions):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *NUMERIC]
    environment = {**os.environ, "XLA_FLAGS": f"--xla_cpu_max_isa={instructions}"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-5000:]
