"""Reads what a pipeline's runs left in its folder: results, curves, pictures."""

import collections
import dataclasses
import json
import math
import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError

INITS = ("random", "MAE", "WSP", "MAE→WSP")  # the order of the paper's comparison; others follow as they come
MEASURES = ("accuracy", "tag_map")  # what a task is scored by: the first that its runs have
TITLES = {"accuracy": "accuracy", "tag_map": "hashtag mAP", "tag_precision": "top-hashtag precision"}
SUITE = "suite"  # kind of a run that judges another one; each of its tasks is a run of its own here
_NEIGHBOURS = "20-NN"  # which of several numbers of neighbours is shown, DINO's usual choice
_OLD_NAMES = {"examples_seen": "images_seen", "examples_per_second": "images_per_second"}
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
      metric: its full name, EVALUATION SET/MEASURE.
      mean: mean of the metric, a fraction.
      std: sample standard deviation, or None for a single value.
      seeds: runs of different seeds.
      splits: draws of the labelled images, over all runs; None where the task draws none.
    """

    init: str
    task: str
    metric: str
    mean: float
    std: float | None
    seeds: int
    splits: int | None

    @property
    def repeated(self) -> str:
        """Over what the mean is taken, as "3 seeds" or "5 splits, 1 seed"."""
        counts = {"split": self.splits, "seed": self.seeds}
        return ", ".join(f"{n} {what}{'' if n == 1 else 's'}" for what, n in counts.items() if n is not None)


def title(metric: str) -> str:
    """What a metric is called on axes and in tables; its values are shown in percent."""
    name, _, measure = metric.partition("/")
    called = TITLES.get(measure, measure)
    return f"held-out {called} (%)" if name == "test" else f"{called} on {name} (%)"


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
        runs = [_run(folder / name, stage, _init(stage, stages)) for name, stage in stages.items()]
        parts = tuple(part for run in runs for part in (_columns(run) if run.stage == SUITE else [run]))
        return Pipeline(folder, described["title"], described["config"], described["data"], parts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"--workdir: {path} is damaged ({what}); {_PIPELINE_FOLDER}") from error


def scores(runs: Iterable[Run]) -> list[Score]:
    """One score for each (initialisation, task) that has a finite result, ordered by initialisation, then task.

    A run is one value, or the mean and sample standard deviation of several (`…_std` over `…/splits` splits of a
    low-shot run). Values of all seeds are pooled: the spread within runs and the spread between them both count.
    """
    runs = [run for run in runs if run.task]
    found = []
    for init, task in ((i, t) for i in inits(runs) for t in tasks(runs)):
        done = [run for run in runs if (run.init, run.task) == (init, task) and run.result]
        for measure in MEASURES:
            if (metric := _metric(done, measure, lambda run: [run.result.get("metrics", {})])) is not None:
                found.append(_score(init, task, metric, done))
                break
    return found


def inits(runs: Iterable[Run]) -> list[str]:
    """Initialisations in the order of the paper, then of appearance."""
    present = dict.fromkeys(run.init for run in runs)
    return [init for init in (*INITS, *(i for i in present if i not in INITS)) if init in present]


def tasks(runs: Iterable[Run]) -> list[str]:
    """Tasks in order of appearance."""
    return list(dict.fromkeys(run.task for run in runs if run.task))


def curve(runs: Iterable[Run], name: str) -> list[tuple[int, list[float]]]:
    """(examples seen, finite values of metric `name` over runs), ascending."""
    points = collections.defaultdict(list)
    for row in (row for run in runs for row in run.rows):
        if finite(row.get(name)) and (seen := figure(row, "examples_seen")) is not None:
            points[seen].append(float(row[name]))
    return sorted(points.items())


def held_out(runs: Sequence[Run], measure: str) -> str | None:
    """The metric in which a measure was recorded while the runs trained, on the first evaluation set that has it."""
    return _metric(runs, measure, lambda run: run.rows)


def figure(written: Mapping[str, Any], name: str) -> Any:
    """A figure of a row or a result, None if it is absent; older runs say images for examples."""
    return written.get(name, written.get(_OLD_NAMES.get(name, name)))


def finite(value: Any) -> bool:
    """Whether a metric has a value: null and NaN say that it could not be measured."""
    return isinstance(value, int | float) and math.isfinite(value)


def _metric(runs: Sequence[Run], measure: str, written: Callable[[Run], Iterable[Mapping]]) -> str | None:
    """Full name of a measure on the first evaluation set with a finite value in what any of the runs has written."""
    sets = dict.fromkeys(name for run in runs for name in ("test", *((run.config or {}).get("evals") or {})))
    for metric in (f"{name}/{measure}" for name in sets):
        if any(finite(values.get(metric)) for run in runs for values in written(run)):
            return metric
    return None


def _score(init: str, task: str, metric: str, runs: Iterable[Run]) -> Score:
    """Pools the values that finished runs have of a metric, of which one at least has a finite one."""
    runs = [run for run in runs if finite(run.result.get("metrics", {}).get(metric))]
    name = metric.partition("/")[0]
    splits = [run.result["metrics"].get(f"{name}/splits") for run in runs]
    parts = [  # (number of values, their mean, their standard deviation) of each run
        (int(n or 1), run.result["metrics"][metric], run.result["metrics"].get(f"{metric}_std") or 0.0)
        for n, run in zip(splits, runs)
    ]
    count = sum(n for n, _, _ in parts)
    mean = sum(n * m for n, m, _ in parts) / count
    squares = sum((n - 1) * s**2 + n * (m - mean) ** 2 for n, m, s in parts)
    return Score(
        init,
        task,
        metric,
        mean,
        std=math.sqrt(squares / (count - 1)) if count > 1 else None,
        seeds=len({run.result.get("seed", run.name) for run in runs}),
        splits=count if any(splits) else None,
    )


def _run(folder: storage.Path, stage: dict, init: str) -> Run:
    pictures = [name for name in storage.names(folder / "pictures") if re.fullmatch(r"reconstruction_\d+\.png", name)]
    newest = max(pictures, key=lambda name: int(re.search(r"\d+", name)[0]), default=None)
    return Run(
        name=stage["name"],
        stage=stage["stage"],
        init=init,
        task=stage["report"].get("task") if stage.get("report") else None,
        folder=folder,
        config=_read_json(folder / "config.json"),
        result=_read_json(folder / "result.json"),
        rows=_read_rows(folder / "metrics.jsonl"),
        picture=folder / "pictures" / newest if newest else None,
    )


def _columns(run: Run) -> list[Run]:
    """The tasks of a finished suite as runs, one for each seed of a task; the suite itself while it is not finished."""
    columns = [c for c in (run.result or {}).get("columns", ()) if finite(c["values"]["accuracy"][0])]
    neighbours = [c["task"] for c in columns if c["task"].endswith("-NN")]
    shown = _NEIGHBOURS if _NEIGHBOURS in neighbours else next(iter(neighbours), None)
    found = []
    for column in (c for c in columns if c["task"] not in neighbours or c["task"] == shown):
        values = column["values"]["accuracy"]
        several = [[value] for value in values] if column["over"] == "seeds" else [values]
        for number, own in enumerate(several):
            metrics = {"test/accuracy": statistics.fmean(own)}
            if column["over"] == "splits":
                spread = statistics.stdev(own) if len(own) > 1 else None
                metrics |= {"test/accuracy_std": spread, "test/splits": len(own)}
            result = {**run.result, "metrics": metrics, "seed": f"{run.name} {number}"}
            if found:  # the time of the suite counts once
                result["wall_seconds"] = None
            name = run.name if not found else f"{run.name} {column['task']} {number}"
            found.append(dataclasses.replace(run, name=name, task=column["task"], result=result))
    return found or [run]


def _init(stage: dict, stages: dict[str, dict]) -> str:
    """As the pipeline names it, else the kinds of the stages before this one, oldest first, for each part."""
    return stage["report"]["init"] if stage.get("report") else _kinds(stage, stages, len(stages)) or "random"


def _kinds(stage: dict, stages: dict[str, dict], most: int) -> str:
    """The kinds of the stages before one, at most `most` deep: "MAE→WSP", or "image: MAE→WSP, text: LIT" of parts."""
    sources = stage.get("init_from")
    if sources is None:
        return ""
    if not most:
        raise ValueError(f"init_from of {stage['name']} goes in a circle")
    parts = []
    for part, name in (sources if isinstance(sources, dict) else {"": sources}).items():
        before = _kinds(stages[name], stages, most - 1)
        kinds = "→".join(filter(None, (before, stages[name]["stage"].upper())))
        parts.append(f"{part}: {kinds}" if part else kinds)
    return ", ".join(parts)


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
