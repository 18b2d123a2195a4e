# SPDX-License-Identifier: MIT
"""The laws of hidden patches, by counting over many draws; ranks and steps see what they should."""

import random

import numpy as np
import pytest
import torch

from solo.errors import ConfigError
from solo.methods.patch_masks import (
    JepaLaw,
    block_mask,
    block_masks,
    hidden_counts,
    jepa_masks,
)

pytestmark = pytest.mark.unit


# ---- iBOT and DINOv2 ----


def test_half_of_the_images_are_masked_one_per_bin():
    for seed in range(20):
        counts = hidden_counts(32, 1000, 0.5, (0.1, 0.5), seed)
        masked = sorted(c for c in counts if c)
        assert len(counts) == 32
        assert len(masked) == 16
        edges = np.linspace(100, 500, 17)
        for count, low, high in zip(masked, edges, edges[1:], strict=False):
            assert low - 1 <= count <= high


def test_shares_are_uniform_and_every_place_is_masked_as_often():
    drawn = np.array([hidden_counts(8, 1000, 0.5, (0.1, 0.5), seed) for seed in range(4000)])
    shares = drawn[drawn > 0] / 1000
    histogram = np.histogram(shares, bins=8, range=(0.1, 0.5))[0] / len(shares)
    assert np.allclose(histogram, 1 / 8, atol=0.01)
    assert np.allclose((drawn > 0).mean(0), 0.5, atol=0.04)
    assert np.allclose(drawn.mean(0), drawn.mean(), rtol=0.06)


@pytest.mark.parametrize(("probability", "masked"), [(0.0, 0), (1.0, 8), (0.3, 2)])
def test_other_probabilities(probability, masked):
    counts = hidden_counts(8, 100, probability, (0.1, 0.5), 0)
    assert sum(c > 0 for c in counts) == masked


def test_blocks_hide_at_most_what_was_asked_and_nearly_that():
    missing = []
    for seed in range(300):
        count = random.Random(seed).randint(20, 98)
        mask = block_mask((14, 14), count, random.Random(seed))
        assert mask.shape == (14, 14)
        assert mask.sum() <= count
        missing.append(count - mask.sum())
    assert np.mean(missing) < 3


def test_a_first_block_has_the_sizes_and_aspects_of_the_law():
    """A mask that one block fills: area from 4 up, height over width from 0.3 to 1/0.3."""
    heights, widths = [], []
    for seed in range(2000):
        mask = block_mask((40, 40), 60, random.Random(seed))
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        if mask.sum() == rows * columns:  # one rectangle
            heights.append(rows)
            widths.append(columns)
    heights, widths = np.array(heights), np.array(widths)
    assert len(heights) > 50
    assert (heights * widths >= 4 - 1).all()
    ratio = heights / widths
    assert 0.2 < ratio.min() < 0.45  # sides are rounded
    assert 2.2 < ratio.max() < 5
    assert 0.4 < (ratio < 1).mean() < 0.6  # log-uniform, so symmetric


def test_two_ranks_draw_what_one_draws():
    counts = hidden_counts(8, 64, 0.5, (0.1, 0.5), 3)
    whole = block_masks(counts, (8, 8), 0, 8, 3)
    halves = [block_masks(counts, (8, 8), first, 4, 3) for first in (0, 4)]
    assert torch.equal(whole, torch.cat(halves))
    assert whole.dtype is torch.bool
    assert (whole.sum(1) <= torch.tensor(counts)).all()
    assert not torch.equal(whole, block_masks(counts, (8, 8), 0, 8, 4))


# ---- I-JEPA ----


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (12, 20)])
def test_context_and_targets_never_overlap_and_stack(grid):
    for seed in range(40):
        masks = jepa_masks(6, grid, JepaLaw(), seed)
        n, m, t = masks.targets.shape
        assert (n, m) == (6, 4)
        assert masks.context.shape[0] == 6
        assert masks.context.shape[1] >= 4
        for image in range(6):
            context = set(masks.context[image].tolist())
            targets = [set(block.tolist()) for block in masks.targets[image]]
            assert len(context) == masks.context.shape[1]
            assert all(len(block) == t for block in targets)
            assert not context & set().union(*targets)
            assert max(context) < grid[0] * grid[1]


def test_targets_are_rectangles_of_one_size_within_the_law():
    sizes, aspects = [], []
    for seed in range(400):
        blocks = jepa_masks(2, (20, 20), JepaLaw(), seed).targets
        shapes = set()
        for block in blocks.flatten(0, 1):
            rows, columns = block // 20, block % 20
            shape = (len(rows.unique()), len(columns.unique()))
            assert shape[0] * shape[1] == len(block)
            shapes.add(shape)
        assert len(shapes) == 1  # the size is drawn once for the batch
        height, width = shapes.pop()
        sizes.append(height * width / 400)
        aspects.append(height / width)
    assert 0.13 < min(sizes) < 0.16 < 0.18 < max(sizes) < 0.22
    assert 0.65 < min(aspects) < 0.8
    assert 1.35 < max(aspects) < 1.7  # sides are rounded


def test_places_are_uniform():
    tops = torch.stack([jepa_masks(4, (12, 12), JepaLaw(), s).targets[..., 0] for s in range(500)])
    height = 12 - (tops.max() // 12)
    counts = torch.bincount((tops // 12).flatten()).double()
    assert float(counts.max() / counts[:5].mean()) < 1.5
    assert int(height) >= 3


def test_the_context_is_what_a_large_block_has_left():
    """Without the cut to the batch's minimum: one image, all that is left in the order of rows."""
    context = jepa_masks(1, (14, 14), JepaLaw(), 5).context[0]
    assert (context.diff() > 0).all()
    assert 40 < len(context) < 196


def test_masks_follow_from_the_seed():
    one, same, other = (jepa_masks(3, (8, 8), JepaLaw(), seed) for seed in (1, 1, 2))
    assert torch.equal(one.context, same.context)
    assert not (
        one.targets.shape == other.targets.shape and torch.equal(one.targets, other.targets)
    )


def test_too_few_patches_are_named():
    with pytest.raises(ConfigError, match="2x2 patches, too few to leave 4"):
        jepa_masks(2, (2, 2), JepaLaw(), 0)
