"""Parts of a build on Apache Beam: how their ends are told."""

import pathlib
import re

import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data.building import runner


class Failing:
    """A step that nobody foresaw."""

    def __init__(self, folder):
        self._folder = str(folder)

    def done(self, index):
        return pathlib.Path(self._folder) / str(index)

    def __call__(self, part):
        return {}["what a defect looks for"]


def test_an_unforeseen_error_of_a_part_is_one_line_that_says_where_its_trace_is(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UserError) as stop:
        runner.run("test", Failing(tmp_path), [None], runner="", options=(), workers=1)
    said = str(stop.value)
    assert "\n" not in said and "KeyError" in said
    trace = pathlib.Path(re.search(r"its trace: (.*?\.log)", said)[1])
    assert "what a defect looks for" in trace.read_text() and "test_runner.py" in trace.read_text()
