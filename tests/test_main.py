"""How commands end: exit codes, one line for every exception, and streams that cannot show or take what is printed."""

import io
import os
import re
import signal
import subprocess
import sys

import jax
import pytest

from mae_pp_jax import __main__
from mae_pp_jax.__main__ import main
from mae_pp_jax.core import errors
from tests.conftest import ROOT, TINY_MAE, arguments, environment

KEYS = ["train", "--config=configs/mae/digits.py", "--keys"]


@pytest.fixture
def raising(monkeypatch):
    """Lets every verb raise an exception where it would begin its work."""

    def patch(error):
        def run(*_):
            raise error

        parse = __main__._Parser.parse_known_args

        def parsed(self, *args, **kwargs):
            found, rest = parse(self, *args, **kwargs)
            found.run = run
            return found, rest

        monkeypatch.setattr(__main__._Parser, "parse_known_args", parsed)

    return patch


def ended(capsys, argv) -> tuple[int, list[str]]:
    code = main(argv)
    return code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("error", [KeyError("shape"), RuntimeError("two\nlines"), AssertionError(), OSError(5, "I/O")])
def test_an_unforeseen_error_is_one_line_that_names_the_file_with_its_trace(raising, capsys, error):
    raising(error)
    code, lines = ended(capsys, KEYS)
    assert code == 70 and len(lines) == 1 and lines[0].startswith(f"stopped: {type(error).__name__}: ")
    with open(re.search(r"its trace: (\S+),", lines[0])[1], encoding="utf-8") as file:
        trace = file.read()
    assert trace.startswith("Traceback (most recent call last):") and type(error).__name__ in trace


@pytest.mark.parametrize("argv", [["--trace", *KEYS], [KEYS[0], "--trace", *KEYS[1:]], [*KEYS, "--trace"]])
@pytest.mark.parametrize("error", [ValueError("no such thing"), errors.UserError("--x: wrong")])
def test_trace_shows_where_an_error_came_from(raising, capsys, argv, error):
    raising(error)
    code, lines = ended(capsys, argv)
    assert code == (2 if isinstance(error, errors.UserError) else 70)
    assert lines[0] == "Traceback (most recent call last):" and str(error) in lines[-1]


NO_MEMORY = [
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.\nMore"),
    MemoryError("Unable to allocate 9.9 GiB for an array"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize("wrapped", [False, True])
def test_out_of_memory_names_what_needs_less(raising, capsys, error, wrapped):
    outer = ValueError("a reader failed")
    outer.__cause__ = error
    raising(outer if wrapped else error)
    code, lines = ended(capsys, KEYS)
    assert code == 3 and len(lines) == 1 and lines[0].startswith("stopped: out of memory (")
    for lever in ("global_batch", "microbatches", "remat", "size of an example"):
        assert lever in lines[0]


def test_other_errors_with_such_words_are_not_out_of_memory(raising, capsys):
    raising(FileNotFoundError(2, "No such file", "/data/Out of memory"))
    assert ended(capsys, KEYS)[0] == 70


def test_ctrl_c_is_one_line(raising, capsys):
    raising(KeyboardInterrupt())
    code, lines = ended(capsys, KEYS)
    assert code == 130 and len(lines) == 1 and lines[0].startswith("stopped: interrupted; the same command")


def test_help_and_readme_say_every_exit_code(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "--trace" in said
    kinds = [cls.exit_code for cls in vars(errors).values() if isinstance(cls, type) and hasattr(cls, "exit_code")]
    readme = (ROOT / "README.md").read_text()
    for code in {0, *kinds, __main__.NOBODY_READS}:
        assert re.search(rf"\b{code}\b", said[said.index("Exit codes") :])
        assert re.search(rf"\b{code}\b", readme[readme.index("Exit codes") :])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_characters_that_the_terminal_lacks_are_replaced(monkeypatch, encoding):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert main(KEYS) == 0
    assert main(["train", "--config=configs/日本→.py", "--workdir=/nowhere"]) == 2
    keys, line = (stream.buffer.getvalue().decode(encoding) for stream in streams.values())
    assert "--config.train_for=" in keys and "?" in keys
    assert "no config file configs/???.py" in line


def run(argv: list[str], **kwargs) -> subprocess.Popen:
    command = [sys.executable, "-m", "mae_pp_jax", *argv]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, **kwargs)


@pytest.mark.parametrize("argv", [KEYS, ["--help"]])
def test_a_reader_that_has_left_is_no_error(argv):
    reading, writing = os.pipe()
    os.close(reading)
    process = run(argv, stdout=writing)
    os.close(writing)
    _, said = process.communicate(timeout=120)
    assert said == "" and process.returncode in (0, __main__.NOBODY_READS)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        _, said = (process := run(KEYS, stdout=full)).communicate(timeout=120)
    assert process.returncode == 2 and said.splitlines() == [
        "error: the output cannot be written: no space left on device; free space, or write elsewhere"
    ]


def test_training_goes_on_when_nobody_reads_its_lines(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    argv = ["train", "--config=configs/mae/digits.py", f"--workdir={tmp_path / 'run'}", *arguments(TINY_MAE)]
    command = [sys.executable, "-m", "mae_pp_jax", *argv]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=writing, stdout=writing)
    os.close(writing)
    assert process.wait(timeout=300) == 0 and (tmp_path / "run/result.json").is_file()


def test_ctrl_c_before_the_first_step_leaves_at_once(tmp_path):
    process = run(["train", "--config=configs/mae/digits.py", f"--workdir={tmp_path / 'run'}", *arguments(TINY_MAE)])
    while "compiled" not in (line := process.stderr.readline()):  # any line before training
        assert line or process.poll() is None
        process.send_signal(signal.SIGINT)
        break
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in said


def test_a_user_whom_the_system_does_not_know_trains(tmp_path, monkeypatch, capsys):
    """As in containers that run under a number: no entry in /etc/passwd for it, nor for the owner of the files."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("grp.getgrgid", unknown)
    overrides = {**TINY_MAE, "train_for": "2 steps", "tensorboard": "true"}
    argv = ["train", "--config=configs/mae/digits.py", f"--workdir={tmp_path / 'run'}", *arguments(overrides)]
    monkeypatch.chdir(ROOT)
    assert main(argv) == 0, capsys.readouterr().err
    assert main(["evaluate", f"--workdir={tmp_path / 'run'}"]) == 0
    assert list((tmp_path / "run/tensorboard").iterdir())
