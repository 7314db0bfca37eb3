"""What the package says it needs, the versions it is pinned to, and the two commands that install it."""

import ast
import os
import pathlib
import re
import shutil
import subprocess

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = pathlib.Path(__file__).parents[1]


def make(*arguments, folder=ROOT):
    """The finished process of `make`, deaf to the variables and flags of the make that may have started these tests."""
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(["make", *arguments], cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def metadata():
    """Arguments of `setup`, as setup.py gives them."""
    import setuptools

    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **kwargs: given.update(kwargs))
        patch.setattr(setuptools, "find_packages", lambda **kwargs: [])
        path = ROOT / "setup.py"
        exec(compile(path.read_text("utf-8"), str(path), "exec"), {"__file__": str(path), "__name__": "setup"})
    return given


@pytest.fixture(scope="module")
def pins():
    """Canonical name → version of every line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_metadata(metadata):
    assert metadata["license"] == "Apache-2.0"
    assert metadata["python_requires"] == ">=3.11"
    assert metadata["entry_points"]["console_scripts"] == ["mae-pp = mae_pp_jax.__main__:command_line"]
    assert set(metadata["extras_require"]) == {"tpu", "gpu", "torch", "beam", "heic", "text", "test", "notebooks"}
    init = ast.parse((ROOT / "mae_pp_jax" / "__init__.py").read_text("utf-8"))
    version = next(n.value.value for n in init.body if isinstance(n, ast.Assign) and n.targets[0].id == "__version__")
    assert str(Version(version)) == metadata["version"]


def test_package_data_exist(metadata):
    for package, names in metadata["package_data"].items():
        for name in names:
            assert (ROOT / package.replace(".", "/") / name).is_file()
    maps = {f"class_maps/{path.name}" for path in (ROOT / "mae_pp_jax/data/class_maps").iterdir()}
    assert maps <= set(metadata["package_data"]["mae_pp_jax.data"])


def test_every_requirement_has_a_lower_bound_and_a_pin_within_its_range(metadata, pins):
    pinned = {"": metadata["install_requires"], **metadata["extras_require"]}
    for extra in ("tpu", "gpu", "torch"):  # need hardware, or serve parity checks: not part of the pinned environment
        for text in pinned.pop(extra):
            assert ">=" in str(Requirement(text).specifier)
    for text in (text for group in pinned.values() for text in group):
        requirement = Requirement(text)
        assert ">=" in str(requirement.specifier), text
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, text


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [("linux", "x86_64", "tensorflow-cpu"), ("linux", "aarch64", "tensorflow"), ("darwin", "arm64", "tensorflow")],
)
def test_each_machine_gets_one_tensorflow(metadata, system, machine, wanted):
    found = [Requirement(text) for text in metadata["install_requires"] if text.startswith("tensorflow")]
    where = {"sys_platform": system, "platform_machine": machine}
    chosen = [r.name for r in found if r.marker and r.marker.evaluate(where)]
    assert chosen == [wanted]


def test_constraints_are_plain_pins():
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line


@pytest.mark.parametrize(
    ("data", "config", "workdir"),
    [
        ("", "configs/pipelines/demo.py", "runs/demo"),
        ("cifar10", "configs/pipelines/demo.py:data=cifar10", "runs/demo-cifar10"),
        ("/path/to/photos/", "configs/pipelines/demo.py:data=/path/to/photos/", "runs/demo-path-to-photos"),
    ],
)
def test_make_demo_chooses_config_and_folder(data, config, workdir):
    last = make("-n", "demo", f"DATA={data}").stdout.splitlines()[-1]
    assert last.split() == [
        ".venv/bin/python",
        "-m",
        "mae_pp_jax",
        "pipeline",
        f"'--config={config}'",
        f"'--workdir={workdir}'",
    ]


def test_make_test_hands_arguments_to_pytest():
    last = make("-n", "test", "ARGS=-k report").stdout.splitlines()[-1]
    assert last.split() == [".venv/bin/python", "-m", "pytest", "-k", "report"]


def test_make_without_a_target_prints_help():
    done = make()
    for target in ("make demo", "make demo DATA=cifar10", "make test", "make clean"):
        assert target in done.stdout


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose pip is a stand-in that logs its calls, as a real installation takes minutes and a network.

    The stand-in for Python makes "environments" that hold itself; `pip install` fails while the file `fail` exists.
    """
    for name in ("Makefile", "setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
[ "$1" = -c ] && exit 0
echo "$@" >> {tmp_path}/calls
case "$2" in
  venv) mkdir -p "$3/bin" && cp {python} "$3/bin/python" ;;
  pip) test ! -e {tmp_path}/fail ;;
esac
"""
    )
    python.chmod(0o755)
    return tmp_path


def make_test(checkout):
    """(exit code, what was called) of `make test`."""
    (checkout / "calls").write_text("")
    done = make("test", f"PYTHON={checkout}/python", folder=checkout)
    return done.returncode, [line.split()[1] for line in (checkout / "calls").read_text().splitlines()]


def test_installs_once_and_again_when_the_pins_change(checkout):
    assert make_test(checkout) == (0, ["venv", "pip", "pytest"])
    assert make_test(checkout) == (0, ["pytest"])
    (checkout / "constraints.txt").touch()
    assert make_test(checkout) == (0, ["pip", "pytest"])


def test_an_interrupted_installation_begins_anew(checkout):
    (checkout / "fail").touch()
    assert make_test(checkout) == (2, ["venv", "pip"])
    (checkout / ".venv" / "left_over").touch()
    (checkout / "fail").unlink()
    assert make_test(checkout) == (0, ["venv", "pip", "pytest"])
    assert not (checkout / ".venv" / "left_over").exists()


def test_an_environment_of_the_users_own_is_kept(checkout):
    subprocess.run([checkout / "python", "-m", "venv", ".venv"], cwd=checkout, check=True)
    (checkout / ".venv" / "theirs").touch()
    assert make_test(checkout) == (0, ["pip", "pytest"])
    assert (checkout / ".venv" / "theirs").exists()


def test_no_python_is_one_line(checkout):
    done = make("test", "PYTHON=no_such_python", folder=checkout)
    assert done.returncode != 0
    assert "no Python 3.11 or newer with its venv module among: no_such_python" in done.stderr.splitlines()[0]
    assert not (checkout / ".venv").exists()
