# SPDX-License-Identifier: MIT
"""Pictures of masks: which weights of some layers both encoders keep, or one of them alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparse_ext.report import plots
from sparse_ext.report.measured import Measured
from sparse_ext.report.page import Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6  # layers
SIDE = 24  # channels
# code of a weight -> (colour, meaning): 1 for the online encoder, 2 for the momentum encoder
BOTH = {
    0: ("#f3f4f6", "pruned in both"),
    1: (plots.ONLINE, "online only"),
    2: (plots.MOMENTUM, "momentum only"),
    3: (plots.INK, "kept by both"),
}
ONE = {0: ("#f3f4f6", "pruned"), 1: (plots.ONLINE, "kept")}


def mask_pictures(page: Page, measured: Measured) -> None:
    """Add a picture of the masks of layers from the first to the last, if there are masks."""
    codes, shares = mask_codes(measured)
    if not codes:
        return
    several = len(measured.encoders) > 1
    text = (
        f"The first {SIDE} x {SIDE} channels of layers from the first to the last: output channels "
        "from top to bottom, input channels from left to right, each with its kernel. The number "
        "is the kept share of the whole layer" + (", online / momentum." if several else ".")
    )
    page.figure("Masks", draw(codes, shares, BOTH if several else ONE), text, wide=True)


def mask_codes(measured: Measured) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Of some layers: what is kept by whom, in a corner of each, and the kept shares.

    Returns:
        (int arrays (height, width) by layer: 1 for online plus 2 for momentum; kept shares by
        layer, online first).
    """
    masks = [_masks(encoder) for encoder in measured.encoders.values()]
    if not masks or not masks[0]:
        return {}, {}
    names = [name for name in masks[0] if all(name in other for other in masks)]
    places = sorted({round(i) for i in np.linspace(0, len(names) - 1, SHOWN)})
    chosen = [names[place] for place in places]
    corners = {name: [_corner(kept[name]) << i for i, kept in enumerate(masks)] for name in chosen}
    codes = {name: np.sum(parts, axis=0) for name, parts in corners.items()}
    return codes, {name: [float(kept[name].mean()) for kept in masks] for name in chosen}


def _masks(encoder: object) -> dict[str, np.ndarray]:
    from sparse_ext.masks.masked_layers import Masked

    modules = encoder.named_modules()  # type: ignore[attr-defined]
    found = {name: m.mask.numpy() for name, m in modules if isinstance(m, Masked)}
    return found if any(not mask.all() for mask in found.values()) else {}


def _corner(mask: np.ndarray) -> np.ndarray:
    """(out, in, kh, kw) or (out, in) to the first channels with their kernels side by side."""
    corner = mask[:SIDE, :SIDE].astype(int)
    if corner.ndim != 4:
        return corner.reshape(corner.shape[0], -1)
    out, into, height, width = corner.shape
    return corner.transpose(0, 2, 1, 3).reshape(out * height, into * width)


def draw(
    codes: dict[str, np.ndarray], shares: dict[str, list[float]], legend: dict[int, tuple[str, str]]
) -> Figure:
    """The layers in rows of three."""
    import matplotlib
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colours = [colour for colour, _ in legend.values()]
    rows = -(-len(codes) // 3)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(8.4, 2.75 * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, 3, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, (name, code) in zip(grid, codes.items(), strict=False):
            kept = " / ".join(f"{100 * share:.0f}%" for share in shares[name])
            axes.set_title(f"{name}  {kept}", fontsize=8.5)
            axes.imshow(
                code,
                cmap=ListedColormap(colours),
                vmin=-0.5,
                vmax=len(colours) - 0.5,
                interpolation="nearest",
            )
        patches = [
            Patch(facecolor=colour, edgecolor=plots.GRID, label=text)
            for colour, text in legend.values()
        ]
        figure.legend(handles=patches, loc="outside upper left", ncols=4)
    return figure
