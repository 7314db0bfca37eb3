"""A pipeline that is interrupted in the middle of its stages goes on with each of them where it was."""

import signal

from tests.conftest import ROOT, command
from tests.faults.conftest import RECIPES, assert_same_run, running, trained, until

RECIPE = """
import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.title, c.data = "interrupted", "digits_hashtags"
    c.stages = [dict(name=name, config={config!r}) for name in ("first", "second")]
    return c
"""


def test_sigterm_reaches_all_stages_and_the_same_command_goes_on(references, tmp_path):
    config, overrides = RECIPES["mae"]
    recipe, folder = tmp_path / "pipeline.py", tmp_path / "run"
    recipe.write_text(RECIPE.format(config=str(ROOT / config)))
    stages = [f"--config.{stage}.{key}={value}" for stage in ("first", "second") for key, value in overrides.items()]
    arguments = ["pipeline", f"--config={recipe}", f"--workdir={folder}", "--workers=2", *stages]
    with running(arguments) as process:
        until(process, lambda: any(trained(folder / stage, 9)() for stage in ("first", "second")))
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert said.splitlines()[-1].startswith("stopped: preempted")
    assert any(folder.glob("*/checkpoints/*")) and not any(folder.glob("*/result.json"))
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    for stage in ("first", "second"):
        assert_same_run(folder / stage, references("mae"))
