"""`data prepare` and `data info` on the command line."""

import argparse

import pytest

from mae_pp_jax.commands import data


def _run(*arguments):
    parser = argparse.ArgumentParser()
    data.add_parser(parser.add_subparsers())
    args = parser.parse_args(["data", *arguments])
    args.run(args)


def test_prepare_then_info(tmp_path, capsys):
    _run("prepare", "--name=digits_hashtags", f"--data_dir={tmp_path}")
    assert "train 1,437, test 360" in capsys.readouterr().out
    _run("info", "--name=digits_hashtags", "--split=test", f"--data_dir={tmp_path}")
    out = capsys.readouterr().out
    assert "360 records" in out and "10 classes" in out and "148 hashtags" in out and "label five" in out


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        _run("info", "--help")
    assert "python -m mae_pp_jax data info --name=" in capsys.readouterr().out
