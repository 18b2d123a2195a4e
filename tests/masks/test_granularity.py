# SPDX-License-Identifier: MIT
"""Groups against loops over the weight's own indices."""

import math

import pytest
import torch
from torch import nn

from solo.errors import ConfigError
from sparse_ext.allocation.budgets import global_topk, keep_topk
from sparse_ext.masks.granularity import NM, Block, Element, Filter, parse
from sparse_ext.masks.mask_set import MaskSet
from sparse_ext.masks.prunable import select
from tests.allocation.shapes import macs_and_shapes

pytestmark = pytest.mark.unit

NAMES = ["element", "2:4", "1:4", "block4", "block4-merged", "block4-padded", "filter"]
SHAPES = [(8, 16, 3, 3), (12, 8, 1, 1), (16, 8)]


def numbered(shape):
    return torch.arange(1, math.prod(shape) + 1).reshape(shape).float()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_unview_inverts_view(name, shape):
    gran, weight = parse(name), numbered(shape)
    groups = gran.view(weight)
    assert groups.shape == (gran.n_groups(shape), gran.group_size(shape))
    assert torch.equal(gran.unview(groups, shape), weight)
    assert str(gran) == name


@pytest.mark.parametrize("name", NAMES)
def test_memory_format_changes_nothing(name):
    gran, weight = parse(name), torch.randn(8, 16, 3, 3)
    last = weight.to(memory_format=torch.channels_last)
    assert torch.equal(gran.view(weight), gran.view(last))
    pooled, pooled_last = gran.pool(weight.abs()), gran.pool(last.abs())
    assert torch.equal(pooled, pooled_last)
    kept = keep_topk(pooled, pooled.numel() // 3)
    mask, mask_last = (
        gran.expand(kept, weight),
        gran.expand(keep_topk(pooled_last, kept.sum().item()), last),
    )
    assert torch.equal(mask, mask_last)
    assert mask_last.is_contiguous(memory_format=torch.channels_last)
    assert mask.is_contiguous()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_expand_and_groups_kept_are_inverse(name, shape):
    gran, weight = parse(name), torch.randn(shape)
    pooled = gran.pool(weight.abs())
    kept = keep_topk(pooled, pooled.numel() // 2)
    mask = gran.expand(kept, weight)
    assert mask.dtype is torch.bool
    assert mask.shape == weight.shape
    assert torch.equal(gran.groups_kept(mask), kept)
    pruned = gran.group_size(shape) * (~kept).sum() * (1 - gran.keeps / gran.group_size(shape))
    assert (~mask).sum() == round(pruned.item())


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (3, 8), (4, 16)])
def test_nm_groups_run_along_input_channels(n, m):
    gran, weight = NM(n, m), torch.randn(5, 2 * m, 3, 3)
    mask = gran.expand(torch.zeros(gran.n_groups(weight.shape), dtype=torch.bool), weight)
    for out in range(5):
        for row in range(3):
            for column in range(3):
                for start in (0, m):
                    window = slice(start, start + m)
                    got = mask[out, window, row, column]
                    best = weight[out, window, row, column].abs().topk(n).indices
                    assert sorted(got.nonzero().flatten().tolist()) == sorted(best.tolist())
    assert gran.satisfied(weight * mask)
    assert not gran.satisfied(weight)
    # The mask would not satisfy groups in plain NCHW order, which cross kernel positions.
    flat = mask.flatten()[: mask.numel() // m * m].reshape(-1, m)
    assert (flat.sum(1) > n).any()


def test_nm_ties_keep_the_first_members():
    mask = NM(2, 4).expand(torch.tensor([False, False]), torch.ones(1, 8))
    assert mask.tolist() == [[True, True, False, False] * 2]
    mask = NM(2, 4).expand(torch.tensor([False]), torch.tensor([[1.0, -2.0, 2.0, 1.0]]))
    assert mask.tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("p", [0.3, 0.5, 1.0])
def test_nm_sparsifies_the_groups_of_smallest_sum(p):
    gran, weight = NM(2, 4), torch.randn(8, 32)
    sums = {
        (out, g): weight[out, 4 * g : 4 * g + 4].abs().sum().item()
        for out in range(8)
        for g in range(8)
    }
    chosen = sorted(sums, key=sums.get)[: round(p * 64)]
    pooled = gran.pool(weight.abs())
    mask = gran.expand(keep_topk(pooled, 64 - round(p * 64)), weight)
    touched = [(o, g) for o, g in sums if mask[o, 4 * g : 4 * g + 4].sum() < 4]
    assert sorted(touched) == sorted(chosen)
    assert all(mask[o, 4 * g : 4 * g + 4].sum() == 2 for o, g in touched)
    if p == 1:
        assert gran.satisfied(weight * mask)


def test_block_tiles_are_all_or_nothing_per_kernel_position():
    gran, weight = Block(4), torch.randn(8, 12, 3, 3)
    pooled = gran.pool(weight.abs())
    mask = gran.expand(keep_topk(pooled, 17), weight)
    sums, alive = [], 0
    for row in range(3):
        for column in range(3):
            for out in range(0, 8, 4):
                for inp in range(0, 12, 4):
                    tile = (slice(out, out + 4), slice(inp, inp + 4), row, column)
                    assert mask[tile].sum() in (0, 16)
                    alive += int(mask[tile].all())
                    sums.append((weight[tile].abs().sum(), bool(mask[tile].all())))
    assert alive == 17
    assert min(s for s, kept in sums if kept) >= max(s for s, kept in sums if not kept)


def test_merged_blocks_take_all_kernel_positions():
    gran, weight = Block(4, merge_kernel=True), torch.randn(8, 12, 3, 3)
    mask = gran.expand(keep_topk(gran.pool(weight.abs()), 2), weight)
    tiles = mask.reshape(2, 4, 3, 4, 9).permute(0, 2, 1, 3, 4).reshape(6, -1)
    assert sorted(tiles.sum(1).tolist()) == [0, 0, 0, 0, 144, 144]
    assert tiles.all(1).tolist() == gran.groups_kept(mask).tolist()


def test_padded_blocks_score_the_mean_of_real_members():
    gran, weight = Block(4, pad=True), torch.randn(6, 3, 1, 1)
    expected = [weight[:4].mean(), weight[4:].mean()]
    assert torch.allclose(gran.pool(weight), torch.stack(expected))
    mask = gran.expand(torch.tensor([False, True]), weight)
    assert mask.flatten(1).all(1).tolist() == [False] * 4 + [True] * 2
    assert gran.eligible(weight, nn.Conv2d(3, 6, 1))
    assert not Block(4).eligible(weight, nn.Conv2d(3, 6, 1))


def test_filters():
    gran, weight = Filter(), numbered((4, 2, 3, 3))
    assert gran.pool(weight).tolist() == [weight[i].sum() for i in range(4)]
    mask = gran.expand(torch.tensor([True, False, True, False]), weight)
    assert mask.flatten(1).sum(1).tolist() == [18, 0, 18, 0]


def test_groups_of_resnets():
    gran = parse("block8")
    for name, layers, groups in (("resnet18_cifar", 19, 174_336), ("resnet50", 52, 366_336)):
        _, shapes = macs_and_shapes(name)
        blocks = [gran.n_groups(s) for n, s in shapes.items() if n not in ("conv1", "fc")]
        assert (len(blocks), sum(blocks)) == (layers, groups)


def test_eligibility():
    stem, conv = nn.Conv2d(3, 64, 3), nn.Conv2d(16, 8, 3)
    grouped = nn.Conv2d(16, 16, 3, groups=4)
    for module, nm, block in ((stem, False, False), (conv, True, True), (grouped, True, False)):
        assert NM(2, 4).eligible(module.weight, module) is nm
        assert Block(8).eligible(module.weight, module) is block
        assert Element().eligible(module.weight, module)
        assert Filter().eligible(module.weight, module)
    assert "3 input channels, not a multiple of 4" in NM(2, 4).obstacle(stem.weight, stem)
    assert "would cross" in Block(8).obstacle(grouped.weight, grouped)


@pytest.mark.parametrize("name", ["2:4", "block8"])
def test_ineligible_layers_stay_dense_outside_n(name):
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 6, 3))
    chosen = select(net, stem_dense=False, granularity=parse(name))
    expected = ["1", "2"] if name == "2:4" else ["1"]
    assert list(chosen.layers) == expected
    assert "0" in chosen.dense
    assert "3" in chosen.dense["0"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pruner_written_for_elements_runs_on_groups(name):
    gran = parse(name)
    weights = {"a": torch.randn(8, 16, 3, 3), "b": torch.randn(16, 8)}
    groups = sum(gran.n_groups(w.shape) for w in weights.values())
    budget = round(0.3 * groups)
    kept = global_topk({n: gran.pool(w.abs()) for n, w in weights.items()}, budget)
    masks = MaskSet({n: gran.expand(kept[n], w) for n, w in weights.items()})
    assert sum(int(gran.groups_kept(m).sum()) for m in masks.values()) == budget


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nm(2,4)", "2:4"),
        ("nm(1, 4)", "1:4"),
        ("4:8", "4:8"),
        ("block", "block8"),
        ("block(16)", "block16"),
        (" filter ", "filter"),
    ],
)
def test_parse_spellings(text, expected):
    assert str(parse(text)) == expected
    assert parse(parse(text)) is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("elment", "Did you mean 'element'"),
        ("unstructured", "Valid names"),
        ("4:2", "0 < N < M"),
        ("4:4", "0 < N < M"),
        ("0:4", "0 < N < M"),
        ("block1", "at least 2"),
        ("block0", "at least 2"),
        (None, "unknown"),
    ],
)
def test_parse_errors(text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text)
