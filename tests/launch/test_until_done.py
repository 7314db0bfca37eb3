import subprocess

import pytest

from tests.conftest import ROOT

SCRIPT = str(ROOT / "launch/until_done.sh")


@pytest.mark.parametrize("last", [0, 2, 3])
def test_runs_again_only_after_75(tmp_path, last):
    count = tmp_path / "count"
    program = f'echo x >> {count}; [ "$(wc -l < {count})" -ge 3 ] && exit {last}; exit 75'
    assert subprocess.run([SCRIPT, "bash", "-c", program], capture_output=True).returncode == last
    assert count.read_text().count("x") == 3


def test_explains_itself_without_a_command():
    done = subprocess.run([SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2 and "Runs a command again" in done.stdout
