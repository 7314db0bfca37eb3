"""Who may import whom; and configs import nothing but ml_collections and their own shared files."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
ALLOWED = {
    "core": set(),
    "models": {"core"},
    "data": {"core"},
    "ops": {"core"},
    "evaluation": {"core", "models", "data", "ops"},
    "interop": {"core", "models", "data", "ops"},
    "reporting": {"core"},
    "planning": {"core"},
    "benchmarking": {"core"},
    "stages": {"core", "models", "data", "ops", "evaluation", "interop"},
    "suites": {"core", "models", "data", "ops", "evaluation", "interop", "stages"},
    "workers": {"core", "models", "data", "ops", "evaluation", "interop", "planning", "stages", "suites"},
    "commands": {
        "core",
        "models",
        "data",
        "ops",
        "evaluation",
        "interop",
        "reporting",
        "planning",
        "benchmarking",
        "stages",
        "suites",
        "workers",
    },
    "__main__": {"core", "commands"},
}
FILES = sorted((ROOT / "mae_pp_jax").rglob("*.py"))


def imported(path: pathlib.Path) -> set[str]:
    """Dotted names of all modules that a file imports or, as a string, starts in another process, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"mae_pp_jax(\.\w+)+", str(node.value)):
            names.add(node.value)
    return names


def part_of(dotted: str) -> str | None:
    pieces = dotted.split(".")
    return pieces[1] if pieces[0] == "mae_pp_jax" and len(pieces) > 1 and pieces[1] != "__version__" else None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_design(path):
    here = path.relative_to(ROOT / "mae_pp_jax").with_suffix("").parts[0]
    if here == "__init__":
        assert not {n for n in map(part_of, imported(path)) if n}
        return
    reached = {part for part in map(part_of, imported(path)) if part} - {here}
    assert reached <= ALLOWED[here], f"{here} may import {ALLOWED[here]}, but imports {reached - ALLOWED[here]}"


def test_models_data_and_ops_do_not_know_the_loop():
    for path in FILES:
        if path.relative_to(ROOT / "mae_pp_jax").parts[0] in ("models", "data", "ops"):
            assert not {
                n for n in imported(path) if n.startswith(("mae_pp_jax.core.loop", "mae_pp_jax.core.program"))
            }, path


def test_only_functional_splits_and_merges_modules():
    for path in FILES:
        if path.name != "functional.py":
            text = path.read_text()
            assert "nnx.split" not in text and "nnx.merge" not in text and "nnx.jit" not in text, path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_configs_import_ml_collections_and_shared_files_only(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert [alias.name for alias in node.names] == ["ml_collections"]
        elif isinstance(node, ast.ImportFrom):
            folder = {1: path.parent, 2: path.parent.parent}[node.level]
            assert folder.is_relative_to(ROOT / "configs")
            assert (folder / f"{node.module}.py").is_file()
