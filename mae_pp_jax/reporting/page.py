"""Lays the report out as one HTML file that needs nothing else: no script, no font, no address it loads from.

Whatever comes from the pipeline's folder is escaped where it enters the page; only this package's own markup is not.
"""

import base64
import html
import importlib.resources
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence

from mae_pp_jax.core import console, storage
from mae_pp_jax.reporting import charts, gather
from mae_pp_jax.reporting.gather import Pipeline, Run, Score

STAGES = {
    "mae": "MAE pre-pretraining",
    "wsp": "WSP, weakly supervised pretraining",
    "classify": "Finetuning",
    "linear": "Linear probe",
    "low_shot": "Low-shot",
    "encoder": "Weights without training",
    "suite": "Frozen features, judged",
}
_WITHOUT_CURVES = ("encoder", "suite")
TASKS = {
    "finetune": "every weight is trained further on the labelled images",
    "linear": "the weights stay frozen; a linear classifier is trained on their features",
    "5-shot": "the weights stay frozen; the classifier on their features sees five labelled images of each class",
    "20-NN": "the weights stay frozen; the 20 most similar training images vote",
    **{
        f"{k}-shot ({name})": f"the weights stay frozen; {what} on the features of {k} labelled images of each class"
        for k in (1, 5, 10)
        for name, what in (("logistic", "logistic regression"), ("ridge", "ridge regression"))
    },
}
_QUALITY = ("accuracy", "tag_precision")  # of the curve beside the loss: the first that a stage recorded
_INTRODUCTION = """
Which start serves a Vision Transformer best? <b>MAE</b> learns by filling in masked patches of images without any
labels; <b>WSP</b> learns to predict the noisy hashtags that images carry; <b>MAE→WSP</b> does the first and then the
second. Each of these, and <b>random</b> weights, was then the starting point for the same tasks on
{data}. The comparison follows <cite>The effectiveness of MAE pre-pretraining for billion-scale pretraining</cite>
(Singh et al., 2023), at a scale that fits the machine it ran on.
"""
_STAGE_COLUMNS = (
    "stage",
    "starts from",
    "runs",
    "examples seen<br>each",
    "wall time<br>together",
    "examples/s",
    "parameters",
    "weights came from",
)


def render(pipeline: Pipeline) -> str:
    """The report as the text of an HTML file."""
    compared = [run for run in pipeline.runs if run.task]
    scores = gather.scores(compared)
    looks = charts.looks(gather.inits(pipeline.runs))
    parts = [
        f"<h1>{_e(pipeline.title)}</h1>",
        f"<p>{_INTRODUCTION.format(data=f'<b>{_e(pipeline.data)}</b>')}</p>",
        _missing(pipeline.runs),
        _scores(compared, scores, looks),
        _curves(pipeline.runs, looks),
        _reconstructions(pipeline.runs),
        _stages(pipeline),
        _other_data(pipeline),
    ]
    return document(pipeline.title, parts)


def document(title: str, parts: Iterable[str]) -> str:
    """A whole HTML file: `title` as plain text, and `parts` of its body as HTML."""
    style = importlib.resources.files(__package__).joinpath("style.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_e(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _missing(runs: Sequence[Run]) -> str:
    """Names the runs whose results are not in; empty when all are."""
    items = [f"<li><code>{_e(run.name)}</code>: {run.state}</li>" for run in runs if run.state != "finished"]
    if not items:
        return ""
    return (
        f'<div class="note"><b>{len(items)} of {len(runs)} runs are not in this report.</b> The pipeline command '
        f"goes on where it stopped and writes the report anew.<ul>{''.join(items)}</ul></div>"
    )


def _scores(compared: Sequence[Run], scores: Sequence[Score], looks: Mapping[str, charts.Look]) -> str:
    inits, tasks = gather.inits(compared), gather.tasks(compared)
    found = {(score.init, score.task): score for score in scores}
    metrics = list(dict.fromkeys(score.metric for score in scores))
    best: dict[tuple[str, str], float] = {}
    for score in scores:
        kind = (score.task, score.metric)
        best[kind] = max(score.mean, best.get(kind, score.mean))
    several = len(metrics) > 1
    lines = [
        f"<tr><th>{_e(init)}</th>{''.join(_cell(found.get((init, task)), best, several) for task in tasks)}</tr>"
        for init in inits
    ]
    what = "".join(f"<li><b>{_e(task)}</b>: {TASKS[task]}</li>" for task in tasks if task in TASKS)
    chart = '<p class="quiet">No task has a result yet, so there is no chart.</p>'
    if scores:
        chart = "".join(_dots(metric, scores, inits, tasks, looks, first=metric == metrics[0]) for metric in metrics)
    around = ""
    if len(metrics) == 1 and len(tasks) >= 3 and len(found) == len(inits) * len(tasks):
        around = _figure(
            charts.radar(scores, inits, tasks, looks),
            f"After Figure 1 of the paper: {_e(gather.title(metrics[0]))}, further out is better; not from 0.",
        )
    measured = " or ".join(map(gather.title, metrics)) or "no result yet"
    return f"""<h2>What each start is worth</h2>
<p>Mean ± standard deviation over seeds and, where few labelled images are drawn, over splits, each a draw of those
images. Measured: {_e(measured)}. A difference that is smaller than the spread is no ranking.</p>
<div class="panels"><div>{_table("scores", ["starts from", *map(_e, tasks)], lines)}<ul class="quiet">{what}</ul></div>
{around}{chart}</div>"""


def _dots(metric: str, scores: Sequence[Score], inits, tasks, looks, *, first: bool) -> str:
    """The chart of one metric, of the tasks that are measured by it; the first also has those without any result."""
    own = [score for score in scores if score.metric == metric]
    by_it, by_any = {score.task for score in own}, {score.task for score in scores}
    shown = [task for task in tasks if task in by_it or (first and task not in by_any)]
    return _figure(
        charts.dots(own, inits, shown, looks),
        "Dots are means; bars reach one standard deviation to either side. The axis need not begin at 0.",
    )


def _cell(score: Score | None, best: Mapping[tuple[str, str], float], name_metric: bool) -> str:
    """A cell of the table; `best` has the highest mean by (task, metric)."""
    if score is None:
        return "<td>–<small>no result</small></td>"
    spread = "" if score.std is None else f" ± {100 * score.std:.1f}"
    kind, mark = ("best", "<small>highest</small>") if score.mean == best[score.task, score.metric] else ("", "")
    over = f"<small>{score.repeated}</small>"
    metric = f"<small>{_e(gather.title(score.metric))}</small>" if name_metric else ""
    return f'<td class="{kind}">{100 * score.mean:.1f}{spread}{mark}{over}{metric}</td>'


def _curves(runs: Sequence[Run], looks: Mapping[str, charts.Look]) -> str:
    parts, without = [], []
    for stage in dict.fromkeys(run.stage for run in runs if run.stage not in _WITHOUT_CURVES):
        members = [run for run in runs if run.stage == stage]
        panels = _panels(stage, members, looks)
        title = STAGES.get(stage, stage)
        if panels:
            parts.append(f'<h3>{_e(title)}</h3><div class="panels">{"".join(panels)}</div>')
        else:
            without.append(_e(title))
    if without:
        parts.append(f'<p class="quiet">No curves were recorded for: {", ".join(without)}.</p>')
    return f"""<h2>How they learn</h2>
<p>Thick lines with markers are held-out images, thin lines the training images; colour and marker say which weights a
run started from. Bands reach from the lowest to the highest seed.</p>
{"".join(parts)}"""


def _panels(stage: str, members: Sequence[Run], looks: Mapping[str, charts.Look]) -> list[str]:
    """Figures of a stage kind: its loss and, where it was recorded, its quality."""

    def series(name: str) -> dict:
        found = {init: gather.curve((r for r in members if r.init == init), name) for init in gather.inits(members)}
        return {init: points for init, points in found.items() if len(points) > 1}

    panels = []
    loss = gather.held_out(members, "loss")
    held_out, training = series(loss) if loss else {}, series("train/loss")
    if held_out or training:
        chart = charts.curves(held_out, training, looks=looks, label="loss", name=f"{stage}-loss")
        panels.append(_figure(chart))
    for name in filter(None, (gather.held_out(members, measure) for measure in _QUALITY)):
        if quality := series(name):
            label = gather.title(name)
            chart = charts.curves(quality, {}, looks=looks, label=label, name=f"{stage}-quality", scale=100)
            panels.append(_figure(chart))
            break
    return panels


def _reconstructions(runs: Iterable[Run]) -> str:
    figures = []
    for run in (run for run in runs if run.stage == "mae"):
        content = storage.read_bytes(run.picture) if run.picture else b""
        if not (content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")):
            figures.append(f'<p class="quiet">There is no reconstruction of <code>{_e(run.name)}</code>.</p>')
            continue
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        step = run.picture.stem.rpartition("_")[2]
        figures.append(
            f'<figure><img src="{source}" alt="Original, masked and reconstructed images of {_e(run.name)}">'
            f"<figcaption><code>{_e(run.name)}</code> after {int(step):,} steps: original, what the encoder saw, "
            "reconstruction. Images are held out.</figcaption></figure>"
        )
    body = "".join(figures) or '<p class="quiet">This pipeline has no MAE stage.</p>'
    return f"<h2>What MAE fills in</h2>\n{body}"


def _stages(pipeline: Pipeline) -> str:
    """Runs that differ by seed alone share a line; their configs are folded below."""
    groups: dict[tuple, list[Run]] = {}
    for run in pipeline.runs:
        groups.setdefault((run.stage, run.init, run.task), []).append(run)
    lines = [_stage_line(runs) for runs in groups.values()]
    configs = "".join(
        f"<details><summary><code>{_e(run.name)}</code></summary>"
        f"<pre>{_e(json.dumps(run.config, indent=1, ensure_ascii=False))}</pre></details>"
        for run in (next((r for r in runs if r.config), None) for runs in groups.values())
        if run
    )
    configs = configs or '<p class="quiet">No run has left a config yet.</p>'
    seconds = sum(run.result.get("wall_seconds") or 0 for run in pipeline.runs if run.result)
    return f"""<h2>What was run</h2>
<p>Recipe <code>{_e(pipeline.config)}</code>; {len(pipeline.runs)} runs, {console.clock(seconds)} (minutes and
seconds) of training and evaluation in all.</p>
{_table("stages", _STAGE_COLUMNS, lines)}
<h3>Configs</h3>
<p class="quiet">The full config of the first run of each line; every run keeps its own in
<code>{_e(pipeline.folder.name)}/RUN/config.json</code>.</p>
{configs}"""


def _stage_line(runs: Sequence[Run]) -> str:
    first = runs[0]
    results = [run.result for run in runs if run.result]

    def values(name: str) -> list[float]:
        return [value for value in (gather.figure(result, name) for result in results) if value is not None]

    def spread(numbers: list[float]) -> str:
        low, high = (charts.short(limit(numbers)) for limit in (min, max)) if numbers else ("–", "–")
        return low if low == high else f"{low} to {high}"

    came_from = dict.fromkeys(map(_origins, results))
    wall = values("wall_seconds")
    cells = (
        _e(first.init),
        f"{len(runs)}" if len(results) == len(runs) else f"{len(results)} of {len(runs)} finished",
        spread(values("examples_seen")),
        console.clock(sum(wall)) if wall else "–",
        spread(values("examples_per_second")),
        spread(values("parameters")),
        "; ".join(map(_e, came_from)) or "–",
    )
    return f"<tr><th>{_e(first.stage)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _origins(result: dict) -> str:
    """Where the weights of a run came from: "mae@100 → wsp@200", or "image: …; text: …" of parts."""
    lineage = result.get("lineage", [])
    parents = result.get("parents", {"": len(lineage) - 1} if lineage else {})
    found = [f"{part}: {_ancestry(lineage, i)}" if part else _ancestry(lineage, i) for part, i in parents.items()]
    return "; ".join(found) or "no other run"


def _ancestry(lineage: Sequence[dict], index: int) -> str:
    """A run of a lineage as `folder@step`, after those that it came from: a record's `parents`, else the one before."""
    run = lineage[index]
    before = [_ancestry(lineage, i) for i in run.get("parents", [index - 1] if index else []) if 0 <= i < index]
    own = f"{storage.Path(str(run.get('run'))).name}@{run.get('step')}"
    return " → ".join([f"({' + '.join(before)})" if len(before) > 1 else "".join(before), own] if before else [own])


def _other_data(pipeline: Pipeline) -> str:
    recipe = pipeline.config.partition(".py:")[0].removesuffix(".py") + ".py"
    beside = pipeline.folder.as_posix().rstrip("/")

    def command(data: str, name: str) -> str:
        config, workdir = shlex.quote(f"{recipe}:data={data}"), shlex.quote(f"{beside}-{name}")
        return f"python -m mae_pp_jax pipeline --config={config} --workdir={workdir}"

    again = f"python -m mae_pp_jax report --workdir={shlex.quote(beside)}"
    return f"""<h2>Run it on other data</h2>
<p>The same recipe on a data set by its TFDS name:</p>
<pre><code>make demo DATA=cifar10
{_e(command("cifar10", "cifar10"))}</code></pre>
<p>On your own images, in folders <code>/path/to/images/CLASS/*.jpg</code>, one for each class:</p>
<pre><code>make demo DATA=/path/to/images
{_e(command("/path/to/images", "images"))}</code></pre>
<p>The first line of each pair is short for the demo recipe; the second names recipe and folder. To write this page
again from the runs:</p>
<pre><code>{_e(again)}</code></pre>
<p class="quiet">The table above as data: <code>report.json</code>, beside this file.</p>"""


def _table(kind: str, columns: Iterable[str], lines: Iterable[str]) -> str:
    """Columns and lines as markup; scrolls sideways where the screen is narrower."""
    head = "".join(f"<th>{column}</th>" for column in columns)
    body = "".join(lines)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(svg: str, caption: str = "") -> str:
    return f"<figure>{svg}{caption and f'<figcaption>{caption}</figcaption>'}</figure>"


def _e(text: object) -> str:
    return html.escape(str(text))
