"""The table of a suite, checkpoints side by side: as data, as Markdown and as a picture."""

import io
import re
import statistics
from collections.abc import Mapping, Sequence

import matplotlib.backends.backend_agg
import matplotlib.figure

MARKS = "*†‡§¶#"
_ROW_INCHES, _LETTER_INCHES = 0.32, 0.088


def build(results: Sequence[Mapping], published: Sequence[Mapping]) -> dict:
    """Columns, rows and notes of the table.

    Args:
      results: of `suites.image.judge`, one for each checkpoint.
      published: rows of other people's figures, see `suites.published.beside`.

    Returns:
      `columns` (tasks), `rows` (`name`, `run`, `step`, `cells`: task → `mean`, `std`, `count`, `over`; accuracies as
      fractions), `published` (`name`, `cells`: task → `mean` and the number of a note), `notes`.
    """
    columns = list(dict.fromkeys(column["task"] for result in results for column in result["columns"]))
    names = _names(results)
    rows = [
        dict(name=name, run=result["run"], step=result["step"], cells={c["task"]: _cell(c) for c in result["columns"]})
        for name, result in zip(names, results, strict=True)
    ]
    notes: list[str] = []
    others = []
    for row in published:
        cells = {}
        for task, (percent, how) in row["figures"].items():
            # The closest of our columns: the first whose name begins with the task.
            own = next((column for column in columns if re.match(rf"{re.escape(task)}(\W|$)", column)), None)
            if own is not None:
                notes += [how] if how not in notes else []
                cells[own] = dict(mean=percent / 100, note=notes.index(how))
        if cells:
            others.append(dict(name=row["name"], cells=cells))
    return dict(columns=columns, rows=rows, published=others, notes=notes, measured=_measured(results))


def markdown(table: Mapping) -> str:
    """The table in Markdown, with what was measured above it and notes below."""
    head = ["checkpoint", *table["columns"]]
    lines = [table["measured"], ""] if table["measured"] else []
    lines += [_line(head), _line(["---"] * len(head))]
    lines += [_line([name.replace("|", "\\|"), *cells]) for name, cells in _texts(table)]
    lines += ["", *_notes(table)] if table["notes"] else []
    return "\n".join(lines) + "\n"


def picture(table: Mapping) -> bytes:
    """The table as a PNG file."""
    head, body = ["checkpoint", *table["columns"]], [[name, *cells] for name, cells in _texts(table)]
    widths = [max(len(row[i]) for row in (head, *body)) + 3 for i in range(len(head))]
    below = [line for text in (table["measured"], *_notes(table)) for line in _wrapped(text, sum(widths))]
    width, height = _LETTER_INCHES * sum(widths), _ROW_INCHES * (len(body) + 1)
    under = 0.2 * (len(below) + 1)
    figure = matplotlib.figure.Figure(figsize=(width, height + under), dpi=150)
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    axes = figure.add_axes((0, under / (height + under), 1, height / (height + under)))
    axes.axis("off")
    shares = [w / sum(widths) for w in widths]
    cells = axes.table(body, colLabels=head, colWidths=shares, cellLoc="center", bbox=(0, 0, 1, 1))
    cells.auto_set_font_size(False)
    cells.set_fontsize(9)
    for (row, column), cell in cells.get_celld().items():
        cell.set_edgecolor("#cccccc")
        if row == 0:
            cell.set_text_props(weight="bold")
        if column == 0:
            cell.set_text_props(ha="left")
            cell.PAD = 0.03
    figure.text(0.01, 0.5 * under / (height + under), "\n".join(below), fontsize=7, va="center", color="#444444")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _cell(column: Mapping) -> dict:
    values = column["values"]["accuracy"]
    std = statistics.stdev(values) if len(values) > 1 else None
    return dict(mean=statistics.fmean(values), std=std, count=len(values), over=column["over"])


def _names(results: Sequence[Mapping]) -> list[str]:
    """What each checkpoint is called: its folder, with the folders above it where two are the same."""
    paths = [str(result["run"]).rstrip("/").split("/") for result in results]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(path)}@{result['step']}" for path, result in zip(paths, results, strict=True)]


def _texts(table: Mapping) -> list[tuple[str, list[str]]]:
    """Name and cells of every row as text, in percent."""
    found = []
    for row in (*table["rows"], *table["published"]):
        texts = []
        for task in table["columns"]:
            cell = row["cells"].get(task)
            if cell is None:
                texts.append("–")
                continue
            spread = "" if cell.get("std") is None else f" ± {100 * cell['std']:.1f}"
            texts.append(f"{100 * cell['mean']:.1f}{spread}{MARKS[cell['note']] if 'note' in cell else ''}")
        found.append((row["name"], texts))
    return found


def _notes(table: Mapping) -> list[str]:
    return [f"{MARKS[i]} {note}" for i, note in enumerate(table["notes"])]


def _measured(results: Sequence[Mapping]) -> str:
    """One line on what the numbers are."""
    datasets = list(dict.fromkeys(_of_dataset(result["dataset"]) for result in results if result["dataset"]))
    over: dict[str, list] = {}
    for result in results:
        for column in result["columns"]:
            if column["over"]:
                task = re.sub(r"^\d+-shot \(.*\)$", "k-shot", column["task"])
                over.setdefault(f"{len(column['values']['accuracy'])} {column['over']}", []).append(task)
    spread = "; ".join(f"{', '.join(dict.fromkeys(tasks))} over {what}" for what, tasks in over.items())
    line = "Top-1 in percent" + (f" on {' and '.join(datasets)}" if datasets else "")
    return line + (f"; mean ± sample standard deviation: {spread}." if spread else ".")


def _of_dataset(dataset: Mapping) -> str:
    test, train = dataset["test"], dataset["train"]
    out = test["unreadable"] + train["unreadable"] + test["unlabelled"] + train["unlabelled"]
    left = f", {out:,} images left out" if out else ""
    return f"{test['images']:,} images of {test['name']} ({test['split']}; fitted on {train['images']:,}{left})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _wrapped(text: str, width: int) -> list[str]:
    lines, rest = [], text
    while len(rest) > width > 0:
        cut = rest.rfind(" ", 0, width)
        cut = cut if cut > 0 else width
        lines.append(rest[:cut])
        rest = rest[cut:].lstrip()
    return [*lines, rest]
