# SPDX-License-Identifier: MIT
"""Images of the run and those that the encoder finds most alike: what the features have learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from solo.errors import SoloError
from sparse_ext.report import plots
from sparse_ext.report.measured import Measured
from sparse_ext.report.page import Page
from sparse_ext.report.runlog import RunLog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUERIES, NEAREST = 6, 6


def neighbours(page: Page, log: RunLog, measured: Measured, images: int) -> None:
    """Add validation images beside their nearest neighbours among `images` of them.

    Images without labels are those of training. A run whose images are not there (any more) has no
    such figure.
    """
    if not measured.encoders or images <= NEAREST:
        return
    from sparse_ext.report.embedding import drawn_images, features_of

    try:
        dataset, places, shown = drawn_images(log, images)
        encoder = next(iter(measured.encoders.values()))
        x, y = features_of(encoder, dataset, places)
    except (SoloError, OSError, KeyError) as error:
        page.facts("Nearest neighbours", {"Not drawn": " ".join(str(error).split())})
        return
    queries, found = nearest(x, y)
    names = class_names(dataset)
    rows = [
        [(place, _name(names, int(y[place]))) for place in (query, *near)]
        for query, near in zip(queries, found, strict=True)
    ]
    pixels = {
        place: as_picture(dataset[places[place]][0], shown) for row in rows for place, _ in row
    }
    labelled = bool((y >= 0).all())
    kind = "validation" if labelled else "training"
    text = (
        f"{len(queries)} {kind} images (left) and those whose features are most alike "
        f"(cosine) among {len(places):,}, by the online encoder of the last checkpoint."
    )
    if labelled:
        right = np.mean([y[near] == y[query] for query, near in zip(queries, found, strict=True)])
        text += f" Green: the same class, {100 * right:.0f}% of those shown."
    page.figure("Nearest neighbours", draw(rows, pixels), text, wide=True)


def nearest(x: np.ndarray, y: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """Queries of as many classes as possible, and the nearest other rows by cosine.

    Args:
        x: features (N, F).
        y: classes (N,).
    """
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    queries: list[int] = []
    pools = [list(np.flatnonzero(y == label)) for label in np.unique(y)]
    while len(queries) < min(QUERIES, len(y)):
        pools = [pool for pool in pools if pool]
        queries += [int(pool.pop(0)) for pool in pools]
    queries = queries[:QUERIES]
    found = []
    for query in queries:
        alike = unit @ unit[query]
        alike[query] = -np.inf
        found.append(np.argsort(-alike, kind="stable")[: min(NEAREST, len(y) - 1)])
    return queries, found


def class_names(dataset: Any) -> dict[int, str]:
    """Names of the classes by label, where the data set has them."""
    return dict(enumerate(map(str, getattr(dataset, "classes", None) or ())))


def _name(names: dict[int, str], label: int) -> str:
    return "" if label < 0 else names.get(label, str(label))


def as_picture(image: Any, shown: Any) -> np.ndarray:
    """A normalised image (3, H, W) as RGB (H, W, 3) in 0..1.

    Args:
        image: tensor.
        shown: its mean and standard deviation (`solo.data.shown.Shown`).
    """
    mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (shown.mean, shown.std))
    return np.clip(np.asarray(image, dtype=np.float32) * std + mean, 0, 1).transpose(1, 2, 0)


def draw(rows: list[list[tuple[int, str]]], pixels: dict[int, np.ndarray]) -> Figure:
    """A row per query: the query, then its neighbours with a frame of their own colour."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(plots.STYLE):
        columns = 1 + max(len(row) - 1 for row in rows)
        height = 1.3 if rows[0][0][1] else 1.17  # with names, or without
        figure = Figure(figsize=(1.15 * columns, height * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for line, row in zip(grid, rows, strict=True):
            for axes in line:
                axes.set_axis_off()
            for axes, (place, name) in zip(line, row, strict=False):
                axes.set_axis_on()
                axes.set(xticks=[], yticks=[])
                axes.grid(False)
                axes.imshow(pixels[place], interpolation="nearest")
                query, same = axes is line[0], name == row[0][1]
                colour = plots.INK if query else plots.RIGHT if same else plots.ALARM
                if not name:  # without labels there is no right and wrong
                    colour = plots.INK if query else plots.GRID
                axes.set_title(name, fontsize=8, color=colour)
                for spine in axes.spines.values():
                    spine.set(visible=True, edgecolor=colour, linewidth=1 if query else 2.2)
    return figure
