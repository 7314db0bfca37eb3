"""What `data build` and `data hashtags` propose as the next command fits the data and the machine, and runs."""

import json
import shlex

import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands import next_command
from mae_pp_jax.commands.next_command import Machine
from mae_pp_jax.core import config as config_lib
from tests.conftest import ROOT
from tests.data.pictures import encode, noise

LAPTOP, T4, H100, POD = Machine(0, 0.0), Machine(1, 16e9), Machine(1, 80e9), Machine(64, 16e9)


def chosen(side, records, machine):
    (spec, *rest) = shlex.split(
        next_command.training("photos", "tags.json", side=side, records=records, machine=machine)
    )
    config = config_lib.load_file(spec.removeprefix("--config="))
    return config["model"]["size"], config["data"]["image_size"], config["global_batch"], bool(rest)


@pytest.mark.parametrize(
    "side, records, machine, expected",
    [
        (64, 7_013, LAPTOP, ("Ti/8", 64, 64, True)),
        (500, 7_013, LAPTOP, ("Ti/8", 64, 64, True)),
        (24, 40, LAPTOP, ("Ti/4", 32, 32, True)),
        (64, 2_428, H100, ("S/8", 64, 32, False)),
        (500, 1_000_000, H100, ("B/16", 224, 256, False)),
        (500, 1_000_000, T4, ("B/16", 224, 32, False)),
        (500, 50_000_000, POD, ("B/16", 224, 1024, False)),
        (500, 100, POD, ("S/16", 224, 64, False)),
    ],
)
def test_model_image_and_batch_fit(side, records, machine, expected):
    assert chosen(side, records, machine) == expected


def test_every_next_line_runs(tmp_path, capsys, monkeypatch):
    pytest.importorskip("apache_beam", reason="data build needs Apache Beam: pip install '.[beam]'")
    root = tmp_path / "my photos"
    root.mkdir()
    rows = []
    for number in range(60):
        (root / f"{number}.png").write_bytes(encode(noise(number), "png"))
        rows.append(json.dumps({"file": f"{number}.png", "hashtags": ["dog", "sea"][: 1 + number % 2]}))
    (root / "metadata.jsonl").write_text("\n".join(rows))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)

    def following(*arguments):
        assert main(list(arguments)) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
        return shlex.split(line.removeprefix("next: python -m mae_pp_jax "))

    data_dir = f"--data_dir={tmp_path / 'my tfds'}"
    hashtags = following("data", "build", "--name=photos", f"--from={root}", data_dir)
    train = following(*hashtags, "--wordnet=none")
    quick = ("--config.train_for=2 steps", "--config.tensorboard=false", "--config.map_positives=0")
    assert main([*train, *quick]) == 0
    result = json.loads((tmp_path / "runs" / "wsp" / "result.json").read_text())
    assert result["step"] == 2 and result["dataset"]["name"] == "photos"


def test_without_hashtags_the_next_line_shows_the_data(tmp_path, capsys):
    pytest.importorskip("apache_beam", reason="data build needs Apache Beam: pip install '.[beam]'")
    for name in ("cat", "dog"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(8):
            (tmp_path / "in" / name / f"{number}.png").write_bytes(encode(noise(number), "png"))
    assert main(["data", "build", "--name=pets", f"--from={tmp_path / 'in'}", f"--data_dir={tmp_path}"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert main(shlex.split(line.removeprefix("next: python -m mae_pp_jax "))) == 0
