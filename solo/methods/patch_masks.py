# SPDX-License-Identifier: MIT
"""Which patches of an image are hidden: the laws of iBOT and DINOv2 (blocks) and of I-JEPA.

Masks follow from a seed and an image's place in the batch of all ranks, so that two ranks with half
of a batch each draw what one rank with all of it draws, and a resumed run what a straight one does.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from solo.errors import ConfigError
from solo.seeding import mix

MIN_BLOCK = 4  # patches
ASPECT = (0.3, 1 / 0.3)  # of a block, height over width
ATTEMPTS = 10  # to place one block


def hidden_counts(
    total: int,
    patches: int,
    probability: float,
    share: tuple[float, float],
    seed: int,
) -> list[int]:
    """How many patches are hidden in each image of a batch (DINOv2's law).

    `probability` of the images get a mask. The range of shares is cut into as many equal bins as
    there are such images, each image draws its share uniformly in a bin of its own, and chance
    decides which image gets which bin.

    Args:
        total: images of the batch, over all ranks.
        patches: patches of an image.
        probability: part of the images that get a mask.
        share: smallest and largest share of hidden patches.
        seed: of this batch.

    Returns:
        `total` numbers, 0 for an image without mask.
    """
    draw = random.Random(seed)
    masked = int(total * probability)
    low, high = share
    width = (high - low) / max(1, masked)
    counts = [
        int(patches * draw.uniform(low + b * width, low + (b + 1) * width)) for b in range(masked)
    ]
    counts += [0] * (total - masked)
    draw.shuffle(counts)
    return counts


def block_mask(grid: tuple[int, int], count: int, draw: random.Random) -> np.ndarray:
    """A mask of `count` patches at most that consists of rectangles (iBOT, after BEiT).

    Rectangles of at least 4 patches with a log-uniform aspect ratio from 0.3 to 1/0.3 are added, at
    most 10 attempts each, until the count is reached or no further one fits.

    Args:
        grid: rows and columns of patches.
        count: number of patches to hide.
        draw: where the random numbers come from.

    Returns:
        (rows, columns) bool, True where hidden.
    """
    mask = np.zeros(grid, dtype=bool)
    hidden = 0
    while hidden < count:
        added = _add_block(mask, count - hidden, draw)
        if not added:
            break
        hidden += added
    return mask


def _add_block(mask: np.ndarray, room: int, draw: random.Random) -> int:
    """Add one rectangle that hides between 1 and `room` further patches; how many it hid."""
    rows, columns = mask.shape
    for _ in range(ATTEMPTS):
        area = draw.uniform(MIN_BLOCK, max(MIN_BLOCK, room))
        aspect = math.exp(draw.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < rows and 0 < width < columns):
            continue
        top, left = draw.randint(0, rows - height), draw.randint(0, columns - width)
        block = mask[top : top + height, left : left + width]
        new = block.size - int(block.sum())
        if 0 < new <= room:
            block[:] = True
            return new
    return 0


def block_masks(
    counts: list[int], grid: tuple[int, int], first: int, images: int, seed: int
) -> Tensor:
    """The masks of this rank's images.

    Args:
        counts: of all ranks' images, see `hidden_counts`.
        grid: rows and columns of patches.
        first: place of this rank's first image among all ranks'.
        images: number of this rank's images.
        seed: of this batch.

    Returns:
        (images, rows * columns) bool, True where hidden.
    """
    masks = [
        block_mask(grid, counts[i], random.Random(mix(seed, i)))
        for i in range(first, first + images)
    ]
    return torch.from_numpy(np.stack(masks)).flatten(1)


class Blocks(NamedTuple):
    """I-JEPA's masks of a batch, as numbers of patches in the order of the image's rows.

    Attributes:
        context: (N, K) patches that the context encoder sees.
        targets: (N, M, T) patches of each of M target blocks.
    """

    context: Tensor
    targets: Tensor


class JepaLaw(NamedTuple):
    """How I-JEPA draws its blocks (Assran et al. 2023, section 3 and appendix A).

    Attributes:
        num_targets: target blocks per image.
        target_scale: smallest and largest share of the image's patches in a target block.
        target_aspect: its height over width.
        context_scale: share of patches in the context block, before the targets are taken out.
        min_context: patches that must be left in the context.
    """

    num_targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_context: int = 4


def jepa_masks(total: int, grid: tuple[int, int], law: JepaLaw, seed: int) -> Blocks:
    """Context and target patches of a batch: sizes once for the batch, places for every image.

    The context is what is left of a large square block without the targets, cut to the smallest
    number in the batch, in the order of the rows, so that the images stack.

    Args:
        total: images of the batch, over all ranks.
        grid: rows and columns of patches.
        law: sizes and numbers.
        seed: of this batch.

    Raises:
        ConfigError: the image has too few patches to leave a context.
    """
    generator = torch.Generator().manual_seed(seed)
    target = _block_size(grid, law.target_scale, law.target_aspect, generator)
    context = _block_size(grid, law.context_scale, (1.0, 1.0), generator)
    # the last block of each image is the context
    blocks = torch.zeros(total, law.num_targets + 1, *grid, dtype=torch.bool)
    left = torch.zeros(total, *grid, dtype=torch.bool)
    for _ in range(100):
        todo = (left.flatten(1).sum(1) < law.min_context).nonzero().flatten()
        if not len(todo):
            break
        targets = _place(len(todo) * law.num_targets, grid, target, generator)
        blocks[todo, :-1] = targets.view(len(todo), law.num_targets, *grid)
        blocks[todo, -1] = _place(len(todo), grid, context, generator)
        left[todo] = blocks[todo, -1] & ~blocks[todo, :-1].any(dim=1)
    else:
        raise ConfigError(
            f"an image has {grid[0]}x{grid[1]} patches, too few to leave {law.min_context} beside "
            f"{law.num_targets} blocks of {target[0]}x{target[1]}: use smaller patches "
            "(backbone.kwargs.patch_size) or larger crops"
        )
    shared = int(left.flatten(1).sum(1).min())
    columns = torch.arange(grid[0] * grid[1])
    order = left.flatten(1).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    indices = columns.expand(total, law.num_targets, -1)[blocks[:, :-1].flatten(2)]
    return Blocks(order[:, :shared], indices.view(total, law.num_targets, -1))


def _block_size(
    grid: tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator,
) -> tuple[int, int]:
    """Rows and columns of a block, at most those of the grid."""
    u, v = torch.rand(2, generator=generator).tolist()
    area = grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0]))
    ratio = aspect[0] + v * (aspect[1] - aspect[0])
    sides = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    height, width = (max(1, min(side, most)) for side, most in zip(sides, grid, strict=True))
    return height, width


def _place(
    count: int, grid: tuple[int, int], size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """`count` blocks at uniform places, (count, rows, columns) bool."""
    inside = []
    for whole, part in zip(grid, size, strict=True):
        start = torch.randint(whole - part + 1, (count, 1), generator=generator)
        axis = torch.arange(whole)
        inside.append((axis >= start) & (axis < start + part))
    return inside[0][:, :, None] & inside[1][:, None, :]
