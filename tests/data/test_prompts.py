"""Templates and class names: ours, and files as others publish them."""

import json

import numpy as np
import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import prompts

FRENCH = ["une photo d'un {}.", "{} : vue de près\u2028", "写真の{}"]


def refused(call, *words):
    with pytest.raises(UserError) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message and message.startswith("config.key: ") and all(word in message for word in words), (
        message
    )


def template_file(tmp_path, content, name="t.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_our_own():
    every = prompts.templates("all", "config.key")
    assert len(every) == len(set(every)) >= 20 and all(template.count("{}") == 1 for template in every)
    assert prompts.templates("drawing, plain", "") == prompts.TEMPLATES["drawing"] + prompts.TEMPLATES["plain"]
    refused(lambda: prompts.templates("photos", "config.key"), "'photos'", "plain, photo, drawing, all")


def test_the_same_templates_from_all_kinds_of_files(tmp_path):
    expected = tuple(template.strip() for template in FRENCH)
    lines = "\ufeff" + "\r\n".join([FRENCH[0].replace("{}", "%s"), "", *FRENCH[1:]]) + "\n"
    files = [template_file(tmp_path, lines), template_file(tmp_path, json.dumps(FRENCH).replace("{}", "{c}"), "t.json")]
    for name, array in (("u.npy", np.array(FRENCH)), ("s.npy", np.char.encode(np.array(FRENCH), "utf-8"))):
        np.save(tmp_path / name, array)
        files.append(str(tmp_path / name))
    for path in files:
        assert prompts.templates(path, "config.key") == expected


@pytest.mark.parametrize(
    "content, name, words",
    [
        ("a {}\n\na photo\n", "t.txt", ["line 3", "no places", "{} exactly once"]),
        ("a {} and %s", "t.txt", ["line 1", "2 places"]),
        ("a {0} or {name}", "t.txt", ["no places"]),
        (b"a {}\n\xff {}\n", "t.txt", ["line 2", "UTF-8"]),
        ("\n \n", "t.txt", ["is empty"]),
        ('["a {}", "a"]', "t.json", ["entry 2"]),
        ('["a {}", 3]', "t.json", ["entry 2", "3"]),
        ('{"imagenet": ["a {}"]}', "t.json", ["a list of templates"]),
        ("3", "t.json", ["must hold a list"]),
        ("[", "t.json", ["no JSON"]),
        ("a {}", "t.csv", [".txt"]),
        ("a {}", "t.npy", ["no array"]),
    ],
)
def test_bad_templates_are_one_line(tmp_path, content, name, words):
    path = template_file(tmp_path, content, name)
    refused(lambda: prompts.templates(path, "config.key"), path, *words)


def test_arrays_that_are_not_text_are_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "was run"), "w"))

    for name, array, word in (
        ("objects.npy", np.array(["a {}", Harmful()], dtype=object), "array.astype(str)"),
        ("numbers.npy", np.arange(3), "not int64 (3,)"),
        ("cube.npy", np.full((1, 1, 1), "a {}"), "must hold text"),
    ):
        np.save(tmp_path / name, array, allow_pickle=True)
        refused(lambda name=name: prompts.templates(str(tmp_path / name), "config.key"), name, word)
    assert not (tmp_path / "was run").exists()
    refused(lambda: prompts.templates(str(tmp_path / "none.txt"), "config.key"), "No such file")


def test_names_by_order_and_by_class(tmp_path):
    classes, expected = ("n1", "n2"), (("grenouille", "rainette"), ("bateau",))
    np.save(tmp_path / "names.npy", np.array([["grenouille", "rainette"], ["bateau", ""]]))
    lists = template_file(tmp_path, json.dumps([["grenouille", "rainette ", "grenouille"], "bateau"]), "list.json")
    object = template_file(tmp_path, json.dumps({"n2": "bateau", "n1": ["grenouille", "rainette"]}), "object.json")
    for path in (str(tmp_path / "names.npy"), lists, object):
        assert prompts.names(path, classes, "config.key") == expected
    lines = template_file(tmp_path, "sunglasses\nsunglasses\n")  # as in OpenAI's list for ImageNet
    assert prompts.names(lines, classes, "config.key") == (("sunglasses",), ("sunglasses",))
    refused(lambda: prompts.names(lines, ("a", "b", "c"), "config.key"), "names 2 classes", "has 3")
    refused(lambda: prompts.names(object, ("n1", "n3"), "config.key"), "no class 'n2'")
    refused(lambda: prompts.names(object, ("n1", "n2", "n3"), "config.key"), "no name for the class 'n3'")
    for bad in ([["a"], []], ["a", " "], ["a", [1]], ["a", {"b": "c"}]):
        path = template_file(tmp_path, json.dumps(bad), "bad.json")
        refused(lambda path=path: prompts.names(path, classes, "config.key"), "entry 2")


def test_names_of_the_classes_themselves():
    found = prompts.names("", ("n01440764", "ice_cream", "chat"), "config.key")
    assert found == (("tench",), ("ice cream",), ("chat",))


def test_texts():
    written, owners = prompts.texts((("frog", "toad {0}"), ("ship",)), ("a {}.", "{}"))
    assert written == ["a frog.", "frog", "a toad {0}.", "toad {0}", "a ship.", "ship"]
    assert owners.tolist() == [0, 0, 0, 0, 1, 1]
