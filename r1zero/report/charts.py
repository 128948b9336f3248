"""Draws charts as SVG. Text and frame are `currentColor`, so that they take the colours of the page."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import numpy as np

PALETTE = ("#2f81f7", "#d9822b", "#2da44e", "#c4528f", "#8a63d2", "#b08800", "#1b9e9e", "#d1453b")
"""Colours of curves, readable on a white and on a nearly black background."""
_INK = "#010203"
"""Placeholder colour, which is replaced by currentColor in the finished SVG."""
_SIZE_IN = (4.6, 2.9)
"""Size of a chart in inches. It is small so that the text is readable on a page that is 400 pixels wide."""
STYLES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
"""Line styles: solid, dashed, dotted, dash-dotted."""
SMOOTHED = 25
"""A curve with more points than this is drawn faint, with its running mean on top."""


@dataclass(frozen=True)
class Series:
    """One curve of a chart."""

    name: str
    x: Sequence[float]
    """Iterations."""
    y: Sequence[float]
    colour: str
    faint: bool = False
    """Whether the curve is dashed and pale, because it is only for comparison."""
    style: int = 0
    """Number of the line style, which tells apart curves of one colour."""
    band: tuple[Sequence[float], Sequence[float]] | None = None
    """Lower and upper bounds of a shaded band, one value per point of the curve."""


@dataclass(frozen=True)
class Chart:
    """A chart with curves over iterations."""

    title: str
    note: str
    """States what is shown and in which unit."""
    series: list[Series]
    logarithmic: bool = False
    """Whether the y-axis is logarithmic if the values are positive and span more than a factor of ten."""
    from_zero: bool = False
    """Whether the y-axis begins at 0, unless a value is negative."""
    marks: list[tuple[float, str]] = field(default_factory=list)
    """Events that are drawn as vertical lines: (iteration, "save" or "alarm")."""


def lines(chart: Chart) -> str:
    """Returns the SVG of a chart with curves."""

    def draw(axes: Any) -> None:
        for one in chart.series:
            _curve(axes, one)
        for x, kind in chart.marks:
            axes.axvline(
                x, color="#d1453b" if kind == "alarm" else _INK, alpha=0.9 if kind == "alarm" else 0.15, lw=0.9
            )
        values = [value for one in chart.series for value in one.y]
        if chart.logarithmic and min(values) > 0 and max(values) > 10 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter("")
        if chart.logarithmic:
            axes.yaxis.set_major_formatter("{x:.3g}")
        if chart.from_zero and min(values) >= 0:
            axes.set_ylim(bottom=0)
        if len(chart.series) > 1:
            _legend(axes)

    return _svg(draw, chart.title)


def _curve(axes: Any, one: Series) -> None:
    style: dict[str, Any] = {"color": one.colour, "linewidth": 1.6}
    style |= {"clip_on": False, "zorder": 3}  # visible on the axis, too
    own_line = {"linestyle": STYLES[one.style % len(STYLES)]}
    if one.band:
        axes.fill_between(one.x, *one.band, color=one.colour, alpha=0.15, linewidth=0)
    if one.faint:
        axes.plot(one.x, one.y, label=one.name, alpha=0.6, linestyle=(0, (4, 2)), **style)
    elif len(one.x) <= SMOOTHED:
        axes.plot(one.x, one.y, label=one.name, marker="o", markersize=2.5, **own_line, **style)
    else:
        width = max(3, len(one.x) // 20)
        mean = np.convolve(one.y, np.ones(width) / width, mode="valid")
        axes.plot(one.x, one.y, alpha=0.3, color=one.colour, linewidth=0.9)
        axes.plot(np.asarray(one.x)[width // 2 : width // 2 + len(mean)], mean, label=one.name, **own_line, **style)


def stacked(title: str, x: Sequence[float], parts: Mapping[str, Sequence[float]]) -> str:
    """Returns the SVG of a stacked area chart over iterations.

    x: iterations. parts: name -> values, one per iteration, stacked from the bottom in this order.
    """

    def draw(axes: Any) -> None:
        colours = [PALETTE[i % len(PALETTE)] for i in range(len(parts))]
        axes.stackplot(x, *parts.values(), labels=list(parts), colors=colours, alpha=0.85, linewidth=0)
        axes.set_ylim(bottom=0)
        _legend(axes)

    return _svg(draw, title, extra_height=0.9)


def heatmap(title: str, x: Sequence[float], columns: Sequence[Sequence[float]], edges: Sequence[float]) -> str:
    """Returns the SVG of a heat map: one column per iteration, in which darker cells are larger shares.

    x: iterations. columns: the counts of a histogram for each iteration, (len(x), bins). edges: the bins + 1 boundaries
    of the bins, which are drawn from bottom to top.
    """

    def draw(axes: Any) -> None:
        shares = np.array(columns, dtype=float).T
        shares = shares / np.maximum(shares.sum(axis=0), 1)
        middle = [(a + b) / 2 for a, b in itertools.pairwise(x)]
        step = (x[-1] - x[0]) / max(1, len(x) - 1) if len(x) > 1 else 1.0
        borders = [x[0] - (middle[0] - x[0] if middle else step / 2), *middle]
        borders.append(x[-1] + (x[-1] - middle[-1] if middle else step / 2))
        for column, (left, right) in enumerate(itertools.pairwise(borders)):
            for row, (low, high) in enumerate(itertools.pairwise(edges)):
                if shares[row, column]:
                    alpha = 0.08 + 0.92 * float(shares[row, column])
                    axes.fill_between([left, right], low, high, color=PALETTE[0], alpha=alpha, linewidth=0)
        axes.set_xlim(borders[0], borders[-1])
        if len(x) <= 6:
            axes.set_xticks(x)
        axes.set_ylim(edges[0], edges[-1])

    return _svg(draw, title)


def _legend(axes: Any) -> None:
    """Draw the legend below the plot, where it hides no curve."""
    handles = axes.get_legend_handles_labels()[0]
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        ncols=2 if len(handles) > 3 else len(handles),
        frameon=False,
        fontsize=8,
        handlelength=1.4,
        columnspacing=1.2,
        labelcolor=_INK,
    )


def _svg(draw: Callable[[Any], None], title: str, extra_height: float = 0.0) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9, "text.parse_math": False}):
        figure = Figure(figsize=(_SIZE_IN[0], _SIZE_IN[1] + extra_height), layout="constrained")
        axes = figure.subplots()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        draw(axes)
        axes.set_xlabel("iteration", color=_INK)
        axes.margins(x=0.01)
        axes.grid(alpha=0.12, color=_INK)
        axes.tick_params(which="both", colors=_INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_INK)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _embedded(buffer.getvalue(), title)


def _embedded(svg: str, title: str) -> str:
    """Returns the <svg> element alone, as wide as its container and in the colours and font of the page."""
    from html import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
    svg = re.sub(r"font-family: [^;\"]*|'DejaVu Sans'[^;\"]*", "", svg)
    return svg.replace(_INK, "currentColor")
