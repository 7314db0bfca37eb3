import dataclasses
import pathlib
import re
import sys

import ml_collections
import pytest

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.config import key, section
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.stages import registry

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "mae_pp_jax"


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = key(0.1, "a rate", low=0.0)
    kind: str = key("a", "a kind", choices=("a", "b"))


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str = key(doc="a name")
    count: int = key(3, "a count")
    flag: bool = key(False, "a flag", restart=True)
    sides: tuple[float, ...] = key((1.0, 2.0), "two sides")
    inner: Inner = section(Inner, rate=0.5)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("name", ["lr", "betas"])
def test_numbers_are_finite(name, text):
    @dataclasses.dataclass(frozen=True)
    class Schema:
        lr: float | None = config_lib.key(1e-3, "a number")
        betas: tuple[float, ...] = config_lib.key((0.9, 0.95), "numbers")

    for overrides, mapping in [({name: text}, {}), ({}, {name: float(text) if name == "lr" else [0.1, float(text)]})]:
        with pytest.raises(UserError, match=f"{name}: must be a finite number, got -?(nan|inf)"):
            config_lib.resolve(Schema, mapping, overrides)


def test_defaults_file_and_overrides_are_laid_over_each_other():
    mapping = ml_collections.ConfigDict(dict(name="x", inner=dict(kind="b")))
    config = config_lib.resolve(Outer, mapping, {"count": "7", "flag": "true", "sides": "3,4.5", "inner.rate": "1e-3"})
    assert config == Outer(name="x", count=7, flag=True, sides=(3.0, 4.5), inner=Inner(rate=1e-3, kind="b"))
    assert config_lib.resolve(Outer, dict(name="x")).inner.rate == 0.5
    assert config_lib.resolve(Outer, config_lib.to_dict(config)) == config


@pytest.mark.parametrize(
    "mapping, overrides, message",
    [
        (dict(), {}, r"config.name: must be set \(a name\)"),
        (dict(name="x", cuont=1), {}, "config.cuont: unknown key; did you mean 'count'"),
        (dict(name="x", inner=dict(rat=1)), {}, "config.inner.rat: unknown key; did you mean 'rate'"),
        (dict(name="x", count=1.5), {}, "config.count: must be a whole number, got 1.5"),
        (dict(name="x", flag=1), {}, "config.flag: must be true or false"),
        (dict(name="x", inner=3), {}, "config.inner: must be a group of keys"),
        (dict(name="x"), {"inner.kind": "c"}, "--config.inner.kind: 'c' is not one of a, b"),
        (dict(name="x"), {"inner.rate": "-1"}, "--config.inner.rate: must be at least 0.0"),
        (dict(name="x"), {"count": "many"}, "--config.count: must be a whole number, got 'many'"),
        (dict(name="x"), {"inner.raet": "1"}, "--config.inner.raet: unknown key; did you mean --config.inner.rate"),
        (dict(name="x"), {"rate": "1"}, "--config.rate: unknown key; did you mean --config.inner.rate"),
        (dict(name="x"), {"inner": "1"}, "--config.inner: this is a group of keys"),
        (dict(name="x"), {"count.x": "1"}, "--config.count.x: 'count' is a single value"),
    ],
)
def test_wrong_values_are_named_with_how_to_fix_them(mapping, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        config_lib.resolve(Outer, mapping, overrides)
    assert "\n" not in str(error.value)


def test_config_files_take_arguments(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "import ml_collections\n"
        "def get_config(size='B/16', epochs=3, light=False):\n"
        "    return ml_collections.ConfigDict(dict(size=size, epochs=epochs, light=light))\n"
    )
    assert config_lib.load_file(str(path)) == dict(size="B/16", epochs=3, light=False)
    assert config_lib.load_file(f"{path}:size=L/16,epochs=5,light") == dict(size="L/16", epochs=5, light=True)
    with pytest.raises(UserError, match="takes no argument 'sise'; did you mean 'size'"):
        config_lib.load_file(f"{path}:sise=L/16")
    with pytest.raises(UserError, match=r"no config file .*recip.py; did you mean .*recipe.py"):
        config_lib.load_file(str(tmp_path / "recip.py"))


def test_an_existing_path_is_never_read_as_syntax(tmp_path, monkeypatch):
    """Commas, equals signs and the end of a config's name within paths."""
    source = "def get_config(data='', size='s', flag=False):\n  return dict(name=data + ' ' + size, flag=flag)\n"
    odd = tmp_path / "a.py:b, size=x #2" / "photos,flag"
    odd.mkdir(parents=True)
    recipe = odd / "recipe.py"
    recipe.write_text(source)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.py").write_text(source)
    assert config_lib.load_file(str(recipe)) == {"name": " s", "flag": False}
    for path in (odd, odd.relative_to(tmp_path)):
        for given in (f"data={path},size=L,flag", f"flag,size=L,data={path}", f"size=L,data={path},flag=true"):
            assert config_lib.load_file(f"recipe.py:{given}") == {"name": f"{path} L", "flag": True}
    with pytest.raises(UserError, match="takes no argument 'flags'; did you mean 'flag'"):
        config_lib.load_file("recipe.py:data=/none,flags")


def test_keys_known_by_their_content_are_told_apart_from_others():
    @dataclasses.dataclass(frozen=True)
    class Data:
        name: str = key("a", "a dataset", by_content=True)
        split: str = key("train", "its split")

    @dataclasses.dataclass(frozen=True)
    class Schema:
        data: Data = section(Data)
        evals: dict[str, Data] = config_lib.named(Data, "sets", names=("test",))

    old, new = (
        config_lib.to_dict(config_lib.resolve(Schema, {}, {"data.name": n, "evals.test.name": n, "data.split": n}))
        for n in ("x", "y")
    )
    assert config_lib.differences(Schema, old, new) == ['data.split: "x" → "y"']
    renamed = config_lib.differences(Schema, old, new, by_content=True)
    assert renamed == ['data.name: "x" → "y"', 'evals.test.name: "x" → "y"']


def test_differences_leave_out_what_a_restart_may_change():
    old, new = dict(name="x", flag=False, inner=dict(rate=1)), dict(name="y", flag=True, inner=dict(rate=2))
    assert config_lib.differences(Outer, old, new) == ["inner.rate: 1 → 2", 'name: "x" → "y"']


@pytest.mark.parametrize("stage", registry.STAGES)
def test_every_key_has_documentation_and_a_reader(stage):
    """STYLE rule: no dead key. A reader is an attribute access of that name somewhere in the package."""
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))

    def check(schema):
        for field in dataclasses.fields(schema):
            assert field.metadata["doc"] or dataclasses.is_dataclass(field.type), field.name
            assert re.search(rf"\.{field.name}\b", code) or f'"{field.name}"' in code, f"nobody reads {field.name}"
            if dataclasses.is_dataclass(field.type):
                check(field.type)

    check(registry.STAGES[stage].Config)


@dataclasses.dataclass(frozen=True)
class Set:
    data: str = config_lib.key("", "dataset")
    share: float = config_lib.key(1.0, "share", low=0.1)


@dataclasses.dataclass(frozen=True)
class WithSets:
    size: int | tuple[int, ...] = config_lib.key(224, "size", low=1)
    evals: dict[str, Set] = config_lib.named(Set, "sets", names=("test",))


def test_named_groups_have_defaults_and_are_added_by_overrides():
    assert config_lib.resolve(WithSets, {}).evals == {"test": Set()}
    found = config_lib.resolve(WithSets, {}, {"evals.v2.data": "imagenet_v2"}).evals
    assert found == {"test": Set(), "v2": Set(data="imagenet_v2")}
    stated = {"evals": {"val": {"share": 0.5}}}
    assert config_lib.resolve(WithSets, stated).evals == {"val": Set(share=0.5)}
    resolved = config_lib.resolve(WithSets, stated, {"evals.val.data": "x", "evals.real.share": "0.3"})
    assert resolved.evals == {"val": Set(data="x", share=0.5), "real": Set(share=0.3)}
    assert config_lib.resolve(WithSets, config_lib.to_dict(resolved)) == resolved
    lines = config_lib.differences(
        WithSets, config_lib.to_dict(resolved), config_lib.to_dict(config_lib.resolve(WithSets, stated))
    )
    assert lines == ['evals.real.data: "" → null', "evals.real.share: 0.3 → null", 'evals.val.data: "x" → ""']
    assert "--config.evals.real.share=0.3" in "\n".join(config_lib.describe(WithSets, config_lib.to_dict(resolved)))


@pytest.mark.parametrize(
    "mapping, overrides, message",
    [
        ({}, {"evals.v2": "x"}, "group of keys; set one of data, share"),
        ({}, {"evals.v2.dat": "x"}, "evals.v2.dat: unknown key; did you mean --config.evals.NAME.data"),
        ({}, {"evals.a/b.data": "x"}, "'a/b' is no name of a group"),
        ({"evals": {"a": 3}}, {}, "config.evals: must be groups of keys by name"),
        ({"evals": {"a": {"share": 0.0}}}, {}, "config.evals.a.share: must be at least 0.1"),
        ({}, {"size": "0,3"}, "config.size: must be at least 1"),
        ({}, {"size": "1.5"}, "config.size: must be a whole number or a list"),
    ],
)
def test_wrong_groups_and_unions(mapping, overrides, message):
    with pytest.raises(UserError, match=message):
        config_lib.resolve(WithSets, mapping, overrides)


@pytest.mark.parametrize("given, size", [("224", 224), ("192,256", (192, 256)), ("(192, 256)", (192, 256))])
def test_a_key_may_be_one_number_or_several(given, size):
    assert config_lib.resolve(WithSets, {}, {"size": given}).size == size


def write_tree(folder, value, recipe="stage/recipe.py"):
    """A recipe that takes its data from a file of the folder above, and a seed from its own folder."""
    path = folder / recipe
    path.parent.mkdir(parents=True)
    (folder / "shared.py").write_text(f"DATA = dict(name={value!r})")
    (path.parent / "own.py").write_text("SEED = 3")
    path.write_text(
        "from ..shared import DATA\nfrom .own import SEED\ndef get_config(size=''):\n"
        "  from ..shared import DATA as again\n  return dict(data=again, seed=SEED, size=size)"
    )
    return path


def test_recipes_share_what_stands_in_their_folder_and_the_one_above(tmp_path, monkeypatch):
    modules = set(sys.modules)
    for value in ("a", "b"):  # two trees with the same names
        path = write_tree(tmp_path / value, value)
        assert config_lib.load_file(f"{path}:size=L/16") == dict(data=dict(name=value), seed=3, size="L/16")
    (tmp_path / "b" / "shared.py").write_text("DATA = dict(name='changed')")
    assert config_lib.load_file(str(path))["data"] == dict(name="changed")
    (tmp_path / "link.py").symlink_to(path)
    assert config_lib.load_file(str(tmp_path / "link.py"))["data"] == dict(name="changed")
    monkeypatch.chdir(path.parent)
    assert config_lib.load_file("recipe.py")["seed"] == 3
    assert config_lib.load_file("../stage/recipe.py")["seed"] == 3
    dotted = write_tree(tmp_path / "v1.0", "dots", "my.stage/recipe.v2.py")
    assert config_lib.load_file(str(dotted))["data"] == dict(name="dots")
    assert set(sys.modules) == modules


@pytest.mark.parametrize(
    "source, message",
    [
        ("from ..absent import DATA", r"shares absent.py of the folder \S*/above, which is not there"),
        ("from .absent import DATA", r"shares absent.py of the folder \S*/above/stage, which is not there"),
        ("from ..shared import ABSENT", "cannot import name 'ABSENT'"),
        ("from ...shared import DATA", "beyond top-level package"),
        ("import absent_package", "No module named 'absent_package'"),
        ("DATA = dict()", "recipe.py is not a recipe, as it has no function get_config"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_one_line(source, message, tmp_path):
    path = write_tree(tmp_path / "above", "a")
    path.write_text(source)
    with pytest.raises(UserError, match=message) as refused:
        config_lib.load_file(str(path))
    assert "\n" not in str(refused.value)
    assert not [name for name in sys.modules if name.startswith("config_tree")]


def test_recipes_of_released_models_fix_the_size():
    folder = PACKAGE.parent / "configs"
    config = config_lib.load_file(f"{folder}/classify/in1k.py:init=mae_in21k:vit_l16")
    assert (config["data"]["image_size"], config["model"]["size"]) == (512, "L/16")
    assert config["init_from"]["run"] == "mae_in21k:vit_l16"
    for recipe, argument, message in [
        ("classify", "size=L/16,init=mae:vit_b16", "that model is B/16; leave size out"),
        ("classify", "init=mae:vit_b1", "init=mae:vit_b1 has no recipe here"),
        ("classify", "init=runs/mae", "give its size too"),
        ("classify", "size=G/16", "size=G/16 has no recipe here; known: Ti, S, B"),
        ("linear", "size=B/16,model=mae:vit_b16", "give one of them"),
        ("linear", "model=mae:vit_b1", "model=mae:vit_b1 has no recipe here"),
    ]:
        with pytest.raises(UserError, match=message):
            config_lib.load_file(f"{folder}/{recipe}/in1k.py:{argument}")


def test_no_long_run_of_lines_stands_twice_in_the_recipes():
    """Eight equal lines are borne; blank lines and comments do not count."""
    first_seen = {}
    for path in sorted((PACKAGE.parent / "configs").rglob("*.py")):
        lines = [line.strip() for line in path.read_text().splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        for at in range(len(lines) - 8):
            here = f"{path}, from {lines[at]!r}"
            assert first_seen.setdefault(tuple(lines[at : at + 9]), here) == here
