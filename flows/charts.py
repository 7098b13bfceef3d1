"""The report's charts: figures in, one self-contained SVG element out, the same bytes for the same figures."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

INK, MUTED, GRID = "#1f2937", "#6b7280", "#e5e7eb"
BLUE, ORANGE = "#2563a8", "#c2621b"
# Inches: small enough that a chart fits a phone's width with its labels still readable.
SIZE = (4.7, 2.8)
_STYLE = {
    "svg.fonttype": "none",  # text stays text: sharp, searchable, in the page's own font
    "font.size": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


def loss_curves(train: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]], best_update: int) -> str:
    """Return the losses of training and dev by update, the published update marked.

    `train` and `validations` are the lines of metrics.jsonl of that kind; losses are nats a target piece. A line of
    training whose updates were all left out has none, nor has a validation whose loss was not finite.
    """
    finite, of_dev = ([line for line in lines if line["loss"] is not None] for lines in (train, validations))

    def draw(axes: Any) -> None:
        axes.plot(_column(finite, "update"), _column(finite, "loss"), color=BLUE, linewidth=1.2, label="train")
        updates = _column(of_dev, "update")
        axes.plot(updates, _column(of_dev, "loss"), color=ORANGE, marker="o", markersize=3.5, label="dev")
        axes.axvline(best_update, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label="best")
        axes.set(xlabel="update", ylabel="loss")
        axes.legend()

    return svg("loss", "Loss of training and dev by update", draw)


def score_curve(name: str, title: str, validations: Sequence[Mapping[str, Any]], best_update: int) -> str:
    """Return a score of dev by update, the published update marked with its value.

    `name` is that of the score in the lines of validation of metrics.jsonl, `title` what people call it.
    """

    def draw(axes: Any) -> None:
        axes.plot(_column(validations, "update"), _column(validations, name), color=ORANGE, marker="o", markersize=3.5)
        for line in validations:
            if line["update"] == best_update:
                axes.plot([best_update], [line[name]], "o", markersize=9, markerfacecolor="none", color=INK)
                axes.annotate(
                    f"best {line[name]:.2f}",
                    (best_update, line[name]),
                    xytext=(0, -20),
                    textcoords="offset points",
                    horizontalalignment="center",
                    color=INK,
                )
        axes.set(xlabel="update", ylabel=f"{title} on dev")
        axes.set_ylim(bottom=0)

    return svg(name, f"{title} on dev by update", draw)


def training_curve(name: str, title: str, train: Sequence[Mapping[str, Any]]) -> str:
    """Return a figure of the lines of training of metrics.jsonl by update; `title` says what it is, with its unit."""

    def draw(axes: Any) -> None:
        axes.plot(_column(train, "update"), _column(train, name), color=BLUE, linewidth=1.2)
        axes.set(xlabel="update", ylabel=title)
        axes.set_ylim(bottom=0)

    return svg(name.replace("_", "-"), f"{title[0].upper()}{title[1:]} by update", draw)


def length_histogram(
    name: str, before: Mapping[str, Sequence[int]], after: Mapping[str, Sequence[int]], language: str
) -> str:
    """Return how many rows of train have which length, in characters, before and after cleaning.

    `before` and `after` are {"edges": [bins + 1], "rows": [bins]} of the same bins, of which the empty ones at the far
    end are left out; `name` makes the ids in the SVG its own.
    """
    bins = 1 + max((index for index, rows in enumerate(before["rows"]) if rows), default=0)

    def draw(axes: Any) -> None:
        for histogram, color, alpha, label in ((before, ORANGE, 0.35, "as read"), (after, BLUE, 0.75, "kept")):
            edges, rows = histogram["edges"][: bins + 1], histogram["rows"][:bins]
            axes.stairs(rows, edges, fill=True, color=color, alpha=alpha, label=label)
        axes.set(xlabel=f"characters ({language})", ylabel="rows")
        axes.legend()

    return svg(name, f"Lengths in {language} before and after cleaning", draw)


def score_histogram(
    rule: str,
    edges: Sequence[float],
    before: Sequence[int],
    after: Sequence[int],
    thresholds: Sequence[tuple[str, float]],
) -> str:
    """Return how many rows have which score of a rule, as read and kept, on a scale of powers of ten.

    `edges` [bins] are the lower ends of the bins, of which the last one also holds whatever is above; `before` and
    `after` [bins]. Bins are drawn equally wide, those beyond the rows and the thresholds left out. `thresholds` are
    pairs of the side that goes ("above" or "below") and the score.
    """
    marks = [_place(edges, worse, value) for worse, value in thresholds]
    filled = [place for place, rows in enumerate(before) if rows]
    first = min([*filled, *(math.floor(mark) for mark in marks)], default=0)
    last = max([*filled, *(math.ceil(mark) - 1 for mark in marks)], default=0)
    bins = max(last - first + 1, _MIN_BINS)
    decades = max(len(str(max(before, default=0))), 1)
    width, height = _PLOT
    left, top = _PLOT_MARGINS

    def x(place: float) -> str:
        return f"{left + width * (place - first) / bins:.1f}"

    def tall(rows: int) -> float:
        # The first decade begins at one row, so that this can be told from none.
        return height * (math.log10(rows) + _FLOOR) / (decades + _FLOOR) if rows else 0.0

    parts = []
    for decade in range(decades + 1):
        y = top + height - tall(10**decade)
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="{GRID}"/>')
        parts.append(f'<text x="{left - 5}" y="{y + 3:.1f}" text-anchor="end">{_power_of_ten(decade)}</text>')
    for rows, color in ((before, ORANGE), (after, BLUE)):
        bars = [
            f"M{x(place)} {top + height}v-{tall(rows[place]):.1f}h{width / bins - _GAP:.1f}v{tall(rows[place]):.1f}z"
            for place in range(first, min(first + bins, len(rows)))
            if rows[place]
        ]
        parts.append(f'<path d="{"".join(bars)}" fill="{color}"/>')
    parts.append(f'<path d="M{left} {top + height}h{width}" stroke="{MUTED}"/>')
    for place in _ticks(first, bins, len(edges)):
        middle, below = x(place), top + height + 13
        parts.append(f'<text x="{middle}" y="{below}" text-anchor="middle">{_edge(edges[place])}</text>')
    for mark, (worse, value) in zip(marks, thresholds):
        # On the side where there is room.
        dx, anchor = (4, "start") if mark - first < bins / 2 else (-4, "end")
        parts.append(f'<path d="M{x(mark)} {top - 12}V{top + height}" stroke="{INK}" stroke-dasharray="3 2"/>')
        parts.append(
            f'<text x="{x(mark)}" dx="{dx}" y="{top - 5}" text-anchor="{anchor}" fill="{INK}">{worse} {value:g}</text>'
        )
    box = f"0 0 {left + width + 12} {top + height + 20}"
    label = f"Scores of {rule}, as read and kept"
    return (
        f'<svg class="scores" viewBox="{box}" font-size="10" fill="{MUTED}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


_PLOT = (300, 110)  # width and height of the bars' field,
_PLOT_MARGINS = (36, 18)  # and what is left and above it
_MIN_BINS = 4
_FLOOR = 0.35  # height of one row, in decades
_GAP = 1.0  # between bars


def _place(edges: Sequence[float], worse: str, value: float) -> float:
    """Return where a threshold stands among the bins, numbered from 0."""
    number = max(sum(edge <= value for edge in edges) - 1, 0)
    if number == 0 and value <= edges[0] and worse == "above":
        # Where nothing but the lowest score stays, its bin is left of the mark.
        return 1.0
    if number == len(edges) - 1:
        return float(number)
    return number + max((value - edges[number]) / (edges[number + 1] - edges[number]), 0.0)


def _ticks(first: int, bins: int, edges: int) -> list[int]:
    step = max(bins // 6, 1)
    return [place for place in range(first, min(first + bins, edges)) if (place - first) % step == 0]


def _edge(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _power_of_ten(exponent: int) -> str:
    return f"{10 ** (exponent % 3)}{('', 'k', 'M', 'G', 'T')[exponent // 3]}"


def _column(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [line[name] for line in lines]


def svg(name: str, title: str, draw: Callable[[Any], None], *, integer_x: bool = True) -> str:
    """Return a chart in the house style: what `draw` puts on its axes. `name` makes the ids in the SVG its own.

    Without `integer_x` the ticks below are those that `draw` sets.
    """
    # Some tenths of a second, which the command's other verbs need not wait for.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    buffer = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        if integer_x:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)
    return _inline(buffer.getvalue(), name, title)


def _inline(document: str, name: str, title: str) -> str:
    """Return the svg element alone, scaling with the page, its ids and references made unique by the chart's name."""
    element = document[document.index("<svg") :].rstrip()
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, flags=re.DOTALL)
    element = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", element)
    element = element.replace("xlink:href=", "href=")
    element = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', element)
    element = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', element)
    element = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", element)
    opening, _, rest = element.partition(">")
    opening = re.sub(r'\s(width|height|version)="[^"]*"', "", opening)
    return f'{opening} class="chart" role="img" aria-label="{title}">{rest}'
