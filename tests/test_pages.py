"""The pages: links lead somewhere, the first page is short, recipes are listed, commands are real ones."""

import pathlib
import re
import shlex

import pytest

from mae_pp_jax.__main__ import parser
from mae_pp_jax.commands.arguments import overrides
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.interop import released
from mae_pp_jax.stages import registry
from tests.conftest import ROOT

FIRST = ROOT / "README.md"
FOLDERS = (".", "configs", "launch", "mae_pp_jax", "notebooks", "tests")
PAGES = sorted({page for folder in FOLDERS[1:] for page in (ROOT / folder).rglob("*.md")} | {FIRST})
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
VERBS = {"train", "pipeline", "evaluate", "predict", "embed", "convert", "plan", "bench", "data", "report"}


def links(page: pathlib.Path) -> list[str]:
    """Targets of a page's relative links, outside of code blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text: str) -> list[list[str]]:
    """The arguments of every complete `python -m mae_pp_jax` command of a text, in a line or between backticks."""
    text = re.sub(r"\s*\\\n\s*", " ", text)
    found = re.findall(r"(?:^[ !$]*|`)python -m mae_pp_jax ([^`\n]*)", text, flags=re.M)
    split = [shlex.split(re.split(r"\s{2,}", line)[0]) for line in found]  # what follows two blanks explains
    return [words for words in split if len(words) > 1 and not {"VERB", "…"} & set(words)]


def given(*texts: str) -> list[list[str]]:
    return [words for text in texts for words in commands(text)]


COMMANDS = sorted((ROOT / "mae_pp_jax" / "commands").glob("*.py"))
SHOWN = given(
    *(page.read_text("utf-8") for page in PAGES),
    *(path.read_text("utf-8") for path in sorted((ROOT / "configs").rglob("*.py"))),
    *(path.read_text("utf-8").replace('"""', "") for path in COMMANDS),
)


def test_the_first_page_is_short():
    lines = FIRST.read_text("utf-8").splitlines()
    assert len(lines) <= 200
    assert not [line for line in lines if len(line) > 160]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_first_one():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(FIRST)}
    assert not {page for page in PAGES if page != FIRST} - linked


def test_every_recipe_is_listed():
    page = (ROOT / "configs" / "README.md").read_text("utf-8")
    for path in (ROOT / "configs").rglob("*.py"):
        assert f"`{path.relative_to(ROOT)}" in page, path


def test_commands_are_found():
    assert len(SHOWN) > 60
    assert {words[0] for words in SHOWN} == VERBS


@pytest.mark.parametrize("words", SHOWN, ids=lambda words: " ".join(words)[:100])
def test_commands_are_those_of_the_command_line(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    args, rest = parser().parse_known_args(words)
    keys = overrides(rest)
    assert getattr(args, "takes_overrides", False) or not rest
    if args.verb == "convert" and args.source and re.fullmatch(r"[a-z_0-9]+:\S+", args.source):
        assert released.find(args.source)
    if args.verb == "pipeline":
        plan = config_lib.load_file(args.config)
        for entry in (entry for entry in plan["stages"] if "config" in entry):
            mapping = config_lib.load_file(str(ROOT / "configs/pipelines" / entry["config"]))
            registry.resolve(config_lib.merge(mapping, entry["overrides"]))
    elif getattr(args, "config", None):
        registry.resolve(config_lib.load_file(args.config), keys)


@pytest.mark.parametrize(
    "line",
    [
        "python -m mae_pp_jax trian --config=x",
        "`python -m mae_pp_jax train --confgi=x`",
        "$ python -m mae_pp_jax report --dir=x",
    ],
)
def test_a_wrong_command_would_be_noticed(line):
    (words,) = commands(line)
    with pytest.raises(UserError):
        parser().parse_known_args(words)
