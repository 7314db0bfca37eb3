"""Files of run folders, weights, vocabularies, reports and pictures are touched through `core/storage.py` alone."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "mae_pp_jax"
# Modules that touch other files than those, by what they touch.
OTHER_FILES = {
    "core/storage.py": "the door itself",
    "core/config.py": "config files, which Python imports",
    "core/hosts.py": "devices of this machine in /dev",
    "core/lease.py": "what /proc says about a process",
    "core/memory.py": "what /proc and the container say about memory",
    "commands/data_build.py": "the folder of datasets",
    "workers/compilation.py": "a temporary folder shared with a process of this machine",
    "interop/download.py": "the user's cache of downloads",
    "data": "datasets, and caches of them on a local disk",
}
KEPT_TO_DOOR = {"data/vocabulary.py", "data/tag_report.py", "data/recognition.py"}  # of data: what is not a dataset
MODULES = {"pathlib", "shutil", "tempfile", "etils"}
OS_CALLS = {"link", "listdir", "makedirs", "mkdir", "open", "remove", "rename", "replace", "rmdir", "scandir", "stat"}
OS_CALLS |= {"unlink", "walk"}
METHODS = {"absolute", "copytree", "exists", "glob", "is_dir", "is_file", "iterdir", "mkdir", "read_bytes", "read_text"}
METHODS |= {"resolve", "rglob", "rmdir", "rmtree", "touch", "unlink", "write_bytes", "write_text"}
FUNCTIONS = {"storage", "config_lib", "registry"}  # modules whose functions share a name with these methods


def touches(tree: ast.AST) -> list[str]:
    """What in a module opens, changes or looks at files by itself."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in MODULES:
            found.append(f"from {node.module} import")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            found.append("open(")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if owner == "os" and node.func.attr in OS_CALLS or owner == "os.path":
                found.append(f"{owner}.{node.func.attr}")
            elif node.func.attr in METHODS and owner not in FUNCTIONS and "importlib.resources" not in owner:
                found.append(f"{owner}.{node.func.attr}")
    return found


def others(name: str) -> bool:
    return name in OTHER_FILES or (name.split("/")[0] in OTHER_FILES and name not in KEPT_TO_DOOR)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_touched_through_the_door(path):
    name = path.relative_to(PACKAGE).as_posix()
    found = touches(ast.parse(path.read_text()))
    assert others(name) or not found, f"{name}: use core/storage.py instead of {', '.join(found)}"


@pytest.mark.parametrize(
    "code",
    ["import pathlib", "from shutil import rmtree", "open('x')", "os.replace(a, b)", "os.path.isfile(a)"]
    + ["folder.mkdir()", "(run / 'x').read_text()", "path.absolute()", "from etils import epath"],
)
def test_what_goes_around_the_door_is_seen(code):
    assert touches(ast.parse(code))
