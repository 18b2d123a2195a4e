# SPDX-License-Identifier: MIT
"""Drawing: one look for all figures, and figures as text that a page can hold."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sparse_ext.report.runlog import Series

INK, GREY, GRID = "#1f2937", "#6b7280", "#e5e7eb"
ONLINE, MOMENTUM, ALARM = "#2563eb", "#ea8a0c", "#dc2626"
RIGHT = "#0d9488"
CYCLE = (ONLINE, MOMENTUM, "#0d9488", "#9333ea", "#64748b", "#be185d")
LONG = 26  # letters of a legend that has one column
DASHES: tuple[Any, ...] = ((0, (6, 3)), (0, (2, 2)))

#: of matplotlib, for every figure
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.9,
    "svg.hashsalt": "solo-learn-sparse",
}


@contextmanager
def drawing(width: float = 5.6, height: float = 3.1) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one set of axes in the house style, `width` x `height` inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def data_uri(figure: Figure) -> str:
    """`figure` as an SVG inside a `data:` address."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def lines(
    series: Mapping[str, Series],
    ylabel: str,
    styles: Mapping[str, Mapping[str, Any]] | None = None,
    marks: Mapping[str, float] | None = None,
    levels: Mapping[str, float] | None = None,
    height: float = 3.1,
    legend: bool = True,
) -> Figure:
    """Draw logged quantities over epochs as lines.

    Args:
        series: by legend text.
        ylabel: quantity and unit.
        styles: matplotlib line options by legend text.
        marks: epochs to mark with a vertical line, by text.
        levels: values to mark with a horizontal line, by text.
        height: in inches.
        legend: above the axes; without one the page says what the lines are.
    """
    with drawing(height=height) as (figure, axes):
        for colour, (label, (epochs, values)) in zip(
            _colours(len(series)), series.items(), strict=True
        ):
            options = {"color": colour, "marker": "o", **(styles or {}).get(label, {})}
            every = max(1, len(values) // 20)  # dots tell lines apart, and are no necklace
            axes.plot(epochs, values, label=label, markersize=3.5, markevery=every, **options)
        for dashes, (text, level) in zip(DASHES, (levels or {}).items(), strict=False):
            axes.axhline(level, color=GREY, linestyle=dashes, linewidth=1.1, label=text)
        for text, epoch in (marks or {}).items():
            axes.axvline(epoch, color=ALARM, linestyle=":", linewidth=1.4, label=text)
        axes.set(xlabel="epochs finished", ylabel=ylabel)
        _readable(axes)
        _whole_epochs(axes)
        if legend:
            figure.legend(loc="outside upper left", ncols=1 if _long(axes) else 2)
    return figure


def _long(axes: Axes) -> bool:
    """Whether two columns of legend would be wider than the figure."""
    return any(len(text) > LONG for text in axes.get_legend_handles_labels()[1])


def _readable(axes: Axes) -> None:
    """Numbers on the vertical axis as they are, not as what is added to one of them."""
    axes.ticklabel_format(axis="y", useOffset=False)
    lines = [line for line in axes.get_lines() if line.get_transform() == axes.transData]
    data = [float(y) for line in lines for y in np.ravel(line.get_ydata())]
    low, high = axes.get_ylim()
    if high - low < 1e-3 * max(abs(low), abs(high)) or (low, high) == (0.0, 0.0):
        middle = (low + high) / 2  # a constant up to rounding
        low, high = middle - 0.05 * abs(middle), middle + 0.05 * abs(middle)
    if data and min(data) == max(data) == 0:
        low, high = 0.0, 1.0
    axes.set_ylim(low, high)


def heatmap(
    names: Sequence[str], epochs: Sequence[float], values: Sequence[Sequence[float]], label: str
) -> Figure:
    """One row per name, one column per point in time; the last column is written out.

    Args:
        names: of the rows.
        epochs: finished when the values were logged, growing, at any distances.
        values: by name and epoch, none below 0; colours span 0 to the largest of them, or to 1 if
            that comes near.
        label: of the colours.
    """
    largest = max((max(row) for row in values), default=0.0)
    top = 1.0 if 0.5 < largest <= 1 else _round_up(largest)
    with drawing(7.4, 1.0 + 0.21 * len(names)) as (figure, axes):
        axes.grid(False)
        edges = _edges(epochs)
        colours: dict[str, Any] = {"cmap": "YlGnBu", "vmin": 0, "vmax": top}
        mesh: Any
        if np.allclose(np.diff(edges), edges[1] - edges[0]):
            extent = (edges[0], edges[-1], len(names) - 0.5, -0.5)
            shape: dict[str, Any] = {"aspect": "auto", "interpolation": "none", "extent": extent}
            mesh = axes.imshow(values, **shape, **colours)
        else:  # validation in some epochs only, say
            rows = [row - 0.5 for row in range(len(names) + 1)]
            mesh = axes.pcolormesh(edges, rows, values, rasterized=True, **colours)
            axes.invert_yaxis()
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="epochs finished")
        _whole_epochs(axes)
        digits = 2 if top > 0.5 else 3
        for row, row_values in enumerate(values):
            axes.annotate(
                f"{row_values[-1]:.{digits}f}",
                (1.01, row),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=7.5,
            )
        figure.colorbar(mesh, ax=axes, label=label, pad=0.09)
    return figure


def _edges(epochs: Sequence[float]) -> list[float]:
    """Borders of columns that lie around `epochs`, halfway to their neighbours."""
    if len(epochs) == 1:
        return [epochs[0] - 0.5, epochs[0] + 0.5]
    inner = [(a + b) / 2 for a, b in pairwise(epochs)]
    return [2 * epochs[0] - inner[0], *inner, 2 * epochs[-1] - inner[-1]]


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if value <= step * power * (1 + 1e-9))


def bars(values: Mapping[str, float], xlabel: str, colours: Sequence[str] | None = None) -> Figure:
    """Horizontal bars with their values written at the end, first one on top."""
    with drawing(height=0.9 + 0.34 * len(values)) as (figure, axes):
        places = list(range(len(values)))[::-1]
        axes.barh(places, list(values.values()), color=colours or CYCLE[0], height=0.62)
        axes.set_yticks(places, list(values))
        axes.set(xlabel=xlabel)
        axes.margins(x=0.14)
        axes.grid(axis="y", visible=False)
        for place, value in zip(places, values.values(), strict=True):
            axes.annotate(
                f"{value:.1f}",
                (value, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
    return figure


def points(panels: Mapping[str, tuple[Any, Any]]) -> Figure:
    """Dots in the plane, one panel beside the other, coloured by class.

    Args:
        panels: by title, positions (N, 2) and classes (N,).
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.9 * len(panels), 3.8), layout="constrained")
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, (xy, classes)) in zip(row, panels.items(), strict=True):
            # one picture inside of the SVG: thousands of dots would make megabytes
            dots = {"s": 5, "alpha": 0.55, "linewidths": 0, "rasterized": True}
            axes.scatter(xy[:, 0], xy[:, 1], c=classes, cmap="tab10", **dots)
            axes.set(title=title, xticks=[], yticks=[])
            axes.grid(False)
    return figure


def pictures(rows: Sequence[Sequence[tuple[str, Any]]]) -> Figure:
    """A grid of pictures (H, W, 3) and maps (H, W), each with a title; all rows equally long."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        size = (1.9 * len(rows[0]), 2.1 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for axes, (title, picture) in zip(grid.flat, (c for r in rows for c in r), strict=True):
            axes.imshow(picture, cmap="viridis", interpolation="nearest")
            axes.set_title(title, fontsize=8.5)
            axes.set_axis_off()
    return figure


def _colours(n: int) -> list[str]:
    return [CYCLE[i % len(CYCLE)] for i in range(n)]


def _whole_epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
