"""Reads what a pipeline's runs left in its folder: results, curves, pictures."""

import collections
import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError

INITS = ("random", "MAE", "WSP", "MAE→WSP")  # the order of the paper's comparison; others follow as they come
METRICS = ("test/accuracy", "test/tag_map")  # what a task is scored by: the first that its runs have
_PIPELINE_FOLDER = (
    "a pipeline folder is made by `python -m mae_pp_jax pipeline --config=configs/pipelines/RECIPE.py --workdir=DIR`"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One stage of the pipeline.

    Attributes:
      name: name in the pipeline, and its folder's.
      stage: kind: mae, wsp, classify, linear, low_shot, …
      init: the weights it started from: random, MAE, WSP, MAE→WSP, …
      task: column of the table that its result belongs in, or None.
      folder: where it ran; absent when it has not.
      config: content of `config.json`, or None.
      result: content of `result.json`, or None while it is not finished.
      rows: lines of `metrics.jsonl`.
      picture: newest reconstruction grid, or None.
    """

    name: str
    stage: str
    init: str
    task: str | None
    folder: storage.Path
    config: dict[str, Any] | None
    result: dict[str, Any] | None
    rows: Sequence[dict[str, Any]]
    picture: storage.Path | None

    @property
    def state(self) -> str:
        """finished, unfinished or not run."""
        if self.result is not None:
            return "finished"
        return "unfinished" if storage.is_dir(self.folder) else "not run"


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A pipeline folder as read from disk; `runs` stand in the order of the recipe."""

    folder: storage.Path
    title: str
    config: str
    data: str
    runs: tuple[Run, ...]


@dataclasses.dataclass(frozen=True)
class Score:
    """What an initialisation reached on a task.

    Attributes:
      mean: mean of the metric, a fraction.
      std: sample standard deviation, or None for a single value.
      seeds: how many values: runs of different seeds, or splits of a low-shot run.
    """

    init: str
    task: str
    metric: str
    mean: float
    std: float | None
    seeds: int


def read(workdir: str | os.PathLike) -> Pipeline:
    """Reads a pipeline folder, whatever part of it has been run.

    Raises:
      UserError: no `pipeline.json` in it, or one that is no such description.
    """
    folder = storage.path(workdir)
    path = folder / "pipeline.json"
    if not storage.is_file(path):
        raise UserError(f"--workdir: no pipeline.json in {folder}; {_PIPELINE_FOLDER}")
    try:
        described = json.loads(storage.read_text(path))
        stages = {stage["name"]: stage for stage in described["stages"]}
        runs = tuple(_run(folder / name, stage, _init(stage, stages)) for name, stage in stages.items())
        return Pipeline(folder, described["title"], described["config"], described["data"], runs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"--workdir: {path} is damaged ({what}); {_PIPELINE_FOLDER}") from error


def scores(runs: Iterable[Run]) -> list[Score]:
    """One score for each (initialisation, task) that has a finite result, ordered by initialisation, then task.

    A run is one value, or the mean and sample standard deviation of several (`…_std` over `test/splits` splits of
    a low-shot run). Values of all seeds are pooled: the spread within runs and the spread between them both count.
    """
    runs = [run for run in runs if run.task]
    found = []
    for init, task in ((i, t) for i in inits(runs) for t in tasks(runs)):
        done = [run for run in runs if (run.init, run.task) == (init, task) and run.result]
        metric = next((m for m in METRICS if any(m in run.result.get("metrics", {}) for run in done)), METRICS[0])
        parts = [_values(run, metric) for run in done]
        parts = [part for part in parts if math.isfinite(part[1])]
        count = sum(n for n, _, _ in parts)
        if not count:
            continue
        mean = sum(n * m for n, m, _ in parts) / count
        squares = sum((n - 1) * s**2 + n * (m - mean) ** 2 for n, m, s in parts)
        found.append(Score(init, task, metric, mean, math.sqrt(squares / (count - 1)) if count > 1 else None, count))
    return found


def inits(runs: Iterable[Run]) -> list[str]:
    """Initialisations in the order of the paper, then of appearance."""
    present = dict.fromkeys(run.init for run in runs)
    return [init for init in (*INITS, *(i for i in present if i not in INITS)) if init in present]


def tasks(runs: Iterable[Run]) -> list[str]:
    """Tasks in order of appearance."""
    return list(dict.fromkeys(run.task for run in runs if run.task))


def curve(runs: Iterable[Run], name: str) -> list[tuple[int, list[float]]]:
    """(images seen, finite values of metric `name` over runs), ascending."""
    points = collections.defaultdict(list)
    for row in (row for run in runs for row in run.rows):
        if math.isfinite(_number(row, name)) and "images_seen" in row:
            points[row["images_seen"]].append(float(row[name]))
    return sorted(points.items())


def _values(run: Run, metric: str) -> tuple[int, float, float]:
    """(number of values, their mean, their standard deviation) that a finished run contributes."""
    metrics = {f"{metric}_std": 0.0, **run.result.get("metrics", {})}
    return int(metrics.get("test/splits", 1)), _number(metrics, metric), _number(metrics, f"{metric}_std")


def _number(values: dict, name: str) -> float:
    """A metric's value; NaN where it has none, which JSON writes as null."""
    return math.nan if values.get(name) is None else values[name]


def _run(folder: storage.Path, stage: dict, init: str) -> Run:
    pictures = [name for name in storage.names(folder / "pictures") if re.fullmatch(r"reconstruction_\d+\.png", name)]
    newest = max(pictures, key=lambda name: int(re.search(r"\d+", name)[0]), default=None)
    return Run(
        name=stage["name"],
        stage=stage["stage"],
        init=init,
        task=stage["report"]["task"] if stage.get("report") else None,
        folder=folder,
        config=_read_json(folder / "config.json"),
        result=_read_json(folder / "result.json"),
        rows=_read_rows(folder / "metrics.jsonl"),
        picture=folder / "pictures" / newest if newest else None,
    )


def _init(stage: dict, stages: dict[str, dict]) -> str:
    """As the pipeline names it, else the kinds of the stages before this one, oldest first."""
    if stage.get("report"):
        return stage["report"]["init"]
    kinds = []
    while stage.get("init_from") is not None and len(kinds) < len(stages):
        stage = stages[stage["init_from"]]
        kinds.append(stage["stage"].upper())
    return "→".join(reversed(kinds)) or "random"


def _read_json(path: storage.Path) -> dict | None:
    """None for a file that is absent or, as a full disk leaves it, not whole: its run then counts as unfinished."""
    try:
        content = json.loads(storage.read_text(path))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _read_rows(path: storage.Path) -> list[dict]:
    """Rows of a `metrics.jsonl`; a line that a running or killed run has not finished is left out."""
    rows = []
    for line in storage.read_text(path).splitlines() if storage.is_file(path) else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
