"""Charts as SVG text to stand inside the report's page: one look for all, colours from the page's light or dark theme.

An initialisation has the same colour, marker and dash everywhere, so that no chart is read by colour alone. Figures are
drawn as wide as a phone's screen and scale up. The same numbers give the same bytes.
"""

import dataclasses
import html
import io
import math
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mae_pp_jax.reporting import gather
from mae_pp_jax.reporting.gather import INITS, Score

MARKERS = "osD^vPX*"
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))
_WIDTH = 4.4  # inches at 72 points: near a phone's screen in CSS pixels, so that 9 points stay readable there

# Stand-ins that matplotlib accepts as colours, and what the page's style sheet calls them.
_TEXT, _GRID = "#fe0001", "#fe0002"
_INIT = [f"#fd00{i:02x}" for i in range(len(MARKERS))]
_THEME = {_TEXT: "var(--text)", _GRID: "var(--grid)", **{c: f"var(--init-{i})" for i, c in enumerate(_INIT)}}

_STYLE = {
    "svg.fonttype": "none",  # text stays text: it scales, can be searched and takes the page's font
    "font.size": 9,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _TEXT,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


@dataclasses.dataclass(frozen=True)
class Look:
    """How an initialisation is drawn."""

    color: str
    marker: str
    dash: str | tuple


def looks(inits: Sequence[str]) -> dict[str, Look]:
    """A look for each initialisation: the paper's four always have the same, others take the next ones."""
    others = [init for init in inits if init not in INITS]
    places = {**{init: i for i, init in enumerate(INITS)}, **{init: len(INITS) + i for i, init in enumerate(others)}}
    count = len(MARKERS)
    return {init: Look(_INIT[p % count], MARKERS[p % count], DASHES[p % len(DASHES)]) for init, p in places.items()}


def dots(scores: Sequence[Score], inits: Sequence[str], tasks: Sequence[str], looks: Mapping[str, Look]) -> str:
    """Dots with bars of one standard deviation: a panel per task, a line per initialisation; missing ones are named.

    Args:
      scores: at least one; all of one metric.
      inits: lines of every panel, top to bottom.
      tasks: panels, top to bottom.
      looks: of the initialisations.
    """
    found = {(score.init, score.task): score for score in scores}
    title = gather.title(scores[0].metric)
    lowest = min(score.mean - (score.std or 0) for score in scores)
    left = max(0, (100 * lowest - 2) // 10 * 10)

    def draw():
        figure = Figure((_WIDTH, 0.6 + len(tasks) * (0.42 + 0.25 * len(inits))), layout="constrained")
        panels = figure.subplots(len(tasks), 1, sharex=True, squeeze=False)[:, 0]
        for axes, task in zip(panels, tasks):
            axes.set_title(_plain(task), loc="left", fontsize=10, fontweight="bold")
            for line, init in enumerate(inits):
                score = found.get((init, task))
                label = _percent(score) if score else "no result"
                axes.annotate(label, (1.02, line), xycoords=("axes fraction", "data"), va="center", fontsize=9)
                if score:
                    look = looks[init]
                    axes.errorbar(
                        100 * score.mean,
                        line,
                        xerr=100 * (score.std or 0),
                        fmt=look.marker,
                        color=look.color,
                        markersize=6.5,
                        elinewidth=2,
                        capsize=3,
                    )
            axes.set_yticks(range(len(inits)), [_plain(init) for init in inits])
            axes.set_ylim(len(inits) - 0.5, -0.5)
            axes.set_xlim(left, 101)
            axes.tick_params(length=0)
            axes.grid(axis="x")
            axes.set_axisbelow(True)
        panels[-1].set_xlabel(_plain(title))
        return figure

    return _svg(draw, scores[0].metric, f"{title} of each initialisation on each task")


def radar(scores: Sequence[Score], inits: Sequence[str], tasks: Sequence[str], looks: Mapping[str, Look]) -> str:
    """The paper's Figure 1: a spoke per task, a closed line per initialisation; further out is better.

    Args:
      scores: of every initialisation on every task; all of one metric.
      inits: lines.
      tasks: spokes, at least three.
      looks: of the initialisations.
    """
    found = {(score.init, score.task): 100 * score.mean for score in scores}
    inner = max(0, (min(found.values()) - 10) // 10 * 10)
    angles = [2 * math.pi * place / len(tasks) for place in range(len(tasks))]

    def draw():
        figure = Figure((_WIDTH, 3.9), layout="constrained")
        axes = figure.subplots(subplot_kw=dict(projection="polar", theta_offset=math.pi / 2, theta_direction=-1))
        for init in inits:
            values = [found[init, task] for task in tasks]
            look = looks[init]
            axes.plot(
                [*angles, angles[0]],
                [*values, values[0]],
                color=look.color,
                ls=look.dash,
                marker=look.marker,
                markersize=5,
                label=_plain(init),
            )
        axes.set_xticks(angles, [_plain(task) for task in tasks], fontsize=10)
        axes.tick_params(axis="x", pad=8)
        axes.set_rlim(inner, 100)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.set_rlabel_position(180 / len(tasks))
        axes.grid(True)
        axes.spines["polar"].set_color(_GRID)
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper left", ncols=4, handlelength=2.2, columnspacing=1.2, borderaxespad=0)
        return figure

    return _svg(draw, "radar", f"{gather.title(scores[0].metric)}, a spoke for each task")


def curves(
    solid: Mapping[str, list[tuple[int, list[float]]]],
    faint: Mapping[str, list[tuple[int, list[float]]]],
    *,
    looks: Mapping[str, Look],
    label: str,
    name: str,
    scale: float = 1.0,
) -> str:
    """Curves against examples seen: the mean over runs, with a band from the lowest to the highest.

    Args:
      solid: initialisation → (examples seen, values of the runs there), held-out values; with markers.
      faint: the same for training values; thin, without markers.
      looks: of the initialisations.
      label: of the vertical axis.
      name: of the chart, unique on the page.
      scale: factor on the values.
    """

    def draw():
        figure = Figure((_WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        for series, width, alpha in ((faint, 0.8, 0.55), (solid, 1.8, 1.0)):
            for init, points in series.items():
                look = looks[init]
                marker = dict(marker=look.marker, markersize=4) if series is solid else {}
                x = [seen for seen, _ in points]
                runs = [[scale * value for value in values] for _, values in points]
                mean = [sum(values) / len(values) for values in runs]
                shown = _plain(init) if series is solid or init not in solid else None
                axes.plot(x, mean, color=look.color, ls=look.dash, lw=width, alpha=alpha, label=shown, **marker)
                if any(len(values) > 1 for values in runs):
                    axes.fill_between(x, *zip(*((min(v), max(v)) for v in runs)), color=look.color, alpha=0.15, lw=0)
        axes.set_xlabel("examples seen")
        axes.set_ylabel(label)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.grid()
        axes.tick_params(length=0)
        figure.legend(loc="outside upper left", ncols=4, handlelength=2.2, columnspacing=1.2, borderaxespad=0)
        return figure

    return _svg(draw, name, f"{label} against examples seen")


def short(number: float) -> str:
    """A number in three digits and a unit: 25600 → 25.6k."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _percent(score: Score) -> str:
    spread = "" if score.std is None else f" ± {100 * score.std:.1f}"
    return f"{100 * score.mean:.1f}{spread}"


def _plain(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def _svg(draw, name: str, description: str) -> str:
    """Runs `draw` in the report's style and returns its figure as an `<svg>` element."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        draw().savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # names such as axes_1 would occur once in every chart of the page
    text = re.sub(r"#f[de]00[0-9a-f]{2}", lambda match: _THEME[match[0]], text)
    box = re.search(r'viewBox="[^"]*"', text)[0]
    head = f'<svg {box} role="img" aria-label="{html.escape(description)}">'
    return head + text[text.index(">") + 1 :]
