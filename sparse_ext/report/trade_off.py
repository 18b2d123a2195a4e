# SPDX-License-Identifier: MIT
"""Quality against cost: a dot per run, the front, and names that do not lie on each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparse_ext.report.plots import GREY, ONLINE, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# where a name may stand: (horizontal, vertical alignment, shift in points), the first choice first
_PLACES = (
    *(("left", "center", (8, 0)), ("right", "center", (-8, 0))),
    *(("center", "bottom", (0, 7)), ("center", "top", (0, -7))),
    *(("left", "bottom", (6, 4)), ("left", "top", (6, -4))),
    *(("right", "bottom", (-6, 4)), ("right", "top", (-6, -4))),
)


def pareto(
    points: Mapping[str, tuple[float, float]],
    xlabel: str,
    ylabel: str,
    styles: Mapping[str, Mapping[str, Any]] | None = None,
    hollow: Collection[str] = (),
    named: bool = True,
) -> Figure:
    """A dot per run and the line of those that no other run beats in both.

    Args:
        points: by name, cost (less is better) and quality (more is better).
        xlabel: the cost and its unit.
        ylabel: the quality and its unit.
        styles: `color` and `marker` by name.
        hollow: names of runs whose quality is of another kind: their dots are hollow, and they do
            not count for the line.
        named: write all names beside the dots, not only those on the line.
    """
    best = front([point for name, point in points.items() if name not in hollow])
    with drawing(height=3.6) as (figure, axes):
        axes.step(*zip(*best, strict=True), where="post", color=GREY, linestyle="--", linewidth=1.1)
        for name, (x, y) in points.items():
            style = (styles or {}).get(name, {})
            colour = style.get("color", ONLINE)
            face = "white" if name in hollow else colour
            marker = style.get("marker", "o")
            axes.scatter(x, y, s=42, facecolor=face, edgecolor=colour, marker=marker, zorder=3)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.margins(x=0.12, y=0.15)
        axes.ticklabel_format(useOffset=False)
        wanted = {n: p for n, p in points.items() if named or (p in best and n not in hollow)}
        _write_names(figure, axes, wanted, list(points.values()))
    return figure


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (cost, quality) that no other point beats or equals in both, by growing cost."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept


def _write_names(
    figure: Figure,
    axes: Axes,
    names: Mapping[str, tuple[float, float]],
    dots: Sequence[tuple[float, float]],
) -> None:
    """Each name where it covers least: no other name, no dot, nothing outside of the axes."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    halo = [withStroke(linewidth=2.5, foreground="white")]
    figure.draw_without_rendering()  # sizes of axes and letters are known from here on
    centres = axes.transData.transform(dots)
    size = figure.dpi / 72 * 4
    taken = [Bbox.from_bounds(x - size, y - size, 2 * size, 2 * size) for x, y in centres]
    for name, point in names.items():
        tried = []
        for rank, (ha, va, shift) in enumerate(_PLACES):
            text: Any = axes.annotate(
                name, point, xytext=shift, textcoords="offset points", fontsize=8, ha=ha, va=va
            )
            text.set_in_layout(False)
            box = text.get_window_extent()
            covered = sum(_area(Bbox.intersection(box, other)) for other in taken)
            outside = _area(box) - _area(Bbox.intersection(box, axes.bbox))
            tried.append((covered + 3 * outside, rank, text, box))
            text.remove()
        _, _, text, box = min(tried, key=lambda t: t[:2])
        text.set_path_effects(halo)
        axes.add_artist(text)
        taken.append(box)


def _area(box: Any) -> float:
    return 0.0 if box is None else float(box.width * box.height)
