"""launch/bench_torch.py: it explains itself without PyTorch, and compares with it where it is installed."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment

SCRIPT = ROOT / "launch" / "bench_torch.py"


def compare(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        cwd=ROOT,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_help_and_unknown_cases_need_no_torch():
    assert "ratio MEDIAN MIN MAX" in compare("--help").stdout
    done = compare("--cases=mae-B/16")
    assert done.returncode == 2 and "--cases: mae-B/16 is none of mae-S/16" in done.stderr


@pytest.mark.slow
def test_the_last_line_is_the_ratio():
    pytest.importorskip("torch", reason="PyTorch is not installed (extra [torch])")
    pytest.importorskip("transformers", reason="Hugging Face transformers is not installed (extra [torch])")
    done = compare("--batch=1", "--rounds=3")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    median, low, high = map(float, re.fullmatch(r"ratio (\S+) (\S+) (\S+)", last).groups())
    assert 0 < low <= median <= high
