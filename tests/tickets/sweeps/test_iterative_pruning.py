# SPDX-License-Identifier: MIT
"""Pruning and random masks as pure functions (property tests 47 and 49)."""

import math

import pytest
import torch

from solo.backbones import BACKBONES, build_encoder
from solo.errors import ConfigError
from sparse_ext.tickets.sweeps import iterative_pruning, random_masks
from tests.tickets.tiny import config

pytestmark = pytest.mark.unit


def network(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (4, 3, 3, 3), "b": (8, 4, 3, 3), "c": (10, 8)}
    weights = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    return weights, {n: torch.ones(s, dtype=torch.bool) for n, s in shapes.items()}


def nnz(masks):
    return sum(int(m.sum()) for m in masks.values())


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors.values()])


def test_thirty_levels_follow_the_sequence_and_are_nested():
    weights = {"a": torch.randn(64, 32, 3, 3), "b": torch.randn(10, 64)}
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    n = count = nnz(masks)
    for k in range(1, 31):
        before, masks = masks, iterative_pruning.prune_smallest(weights, masks, 0.2)
        count -= math.ceil(count / 5)
        assert nnz(masks) == count
        assert abs(count / n - 0.8**k) <= k / n
        assert all((before[name] | ~masks[name]).all() for name in masks)


def test_what_goes_is_smallest_over_all_layers():
    weights, masks = network()
    masks = iterative_pruning.prune_smallest(weights, masks, 0.5)
    magnitudes, kept = flat(weights).abs(), flat(masks)
    assert magnitudes[kept].min() > magnitudes[~kept].max()
    assert len({float(m.float().mean()) for m in masks.values()}) > 1  # not layer by layer


def test_pruned_weights_do_not_come_back_however_large():
    weights, masks = network()
    masks = iterative_pruning.prune_smallest(weights, masks, 0.5)
    gone = {name: ~mask for name, mask in masks.items()}
    for name, where in gone.items():
        weights[name][where] = 100.0
    again = iterative_pruning.prune_smallest(weights, masks, 0.2)
    assert not any((again[name] & where).any() for name, where in gone.items())


@pytest.mark.parametrize(
    ("nnz", "rate", "expected"),
    [(35, 0.2, 7), (36, 0.2, 8), (1, 0.2, 1), (10, 0.3, 3), (55, 0.2, 11)],
)
def test_counts_are_exact(nnz, rate, expected):
    assert iterative_pruning.pruned_count(nnz, rate) == expected


def test_the_last_weight_is_not_pruned():
    masks = {"a": torch.tensor([True, False])}
    with pytest.raises(ConfigError, match="would leave none"):
        iterative_pruning.prune_smallest({"a": torch.ones(2)}, masks, 0.2)


# -- which layers ------------------------------------------------------------------------------


def encoder():
    return build_encoder(config())


def test_all_layers_are_stem_shortcuts_and_the_rest():
    found = iterative_pruning.restricted(encoder())
    assert {"conv1", "layer1.0.conv1", "layer2.0.downsample.0"} <= set(found)
    assert len(found) == 20


def test_the_mlp_of_alexnet_is_pruned_too():
    assert list(iterative_pruning.restricted(BACKBONES["alexnet"](width=2))) == [
        *(f"features.{i}" for i in (0, 4, 8, 11, 14)),
        *("mlp.1", "mlp.5"),
    ]


def test_restrictions():
    stage = iterative_pruning.restricted(encoder(), layers=["conv1", "layer1.*"])
    assert list(stage) == ["conv1", *(f"layer1.{i}.conv{j}" for i in (0, 1) for j in (1, 2))]
    assert list(iterative_pruning.restricted(BACKBONES["alexnet"](width=2), first_convs=3)) == [
        f"features.{i}" for i in (0, 4, 8)
    ]


def test_a_restriction_that_names_no_layer():
    with pytest.raises(ConfigError, match=r"'layer1\.0\.conv9'.*Did you mean 'layer1\.0\.conv"):
        iterative_pruning.restricted(encoder(), layers=["layer1.0.conv9"])
    with pytest.raises(ConfigError, match="has only 5 convolutions"):
        iterative_pruning.restricted(BACKBONES["alexnet"](width=2), first_convs=6)


# -- random masks ------------------------------------------------------------------------------


def pruned(rate=0.6):
    weights, masks = network()
    return weights, iterative_pruning.prune_smallest(weights, masks, rate)


def test_random_masks_keep_as_many():
    _, masks = pruned()
    anywhere = random_masks.random_global(masks, seed=1, level=3)
    layered = random_masks.random_layer(masks, seed=1, level=3)
    assert nnz(anywhere) == nnz(layered) == nnz(masks)
    assert all(layered[n].sum() == masks[n].sum() for n in masks)
    assert any(anywhere[n].sum() != masks[n].sum() for n in masks)
    for kind in (random_masks.random_global, random_masks.random_layer):
        same, other = kind(masks, 1, 3), kind(masks, 2, 3)
        assert torch.equal(flat(kind(masks, 1, 3)), flat(same))
        assert not torch.equal(flat(other), flat(same))
        assert not torch.equal(flat(kind(masks, 1, 4)), flat(same))


def test_random_mask_does_not_depend_on_where_the_ticket_is():
    weights, masks = network()
    a = iterative_pruning.prune_smallest(weights, masks, 0.5)
    b = {n: m.flip(0) for n, m in a.items()}
    assert torch.equal(
        flat(random_masks.random_global(a, 0, 0)), flat(random_masks.random_global(b, 0, 0))
    )


def test_natural_masks_prune_machine_zeros_first():
    weights, masks = network()
    zero = {n: torch.rand(w.shape, generator=torch.Generator().manual_seed(9)) < 0.5 for n, w in
            weights.items()}  # fmt: skip
    eps = torch.finfo(torch.float32).eps
    for name, where in zero.items():
        weights[name][where] = eps
        weights[name][~where] += torch.sign(weights[name][~where])
    Z = flat(zero)
    for rate in (0.2, 0.8):  # below and above |Z| / N
        target = iterative_pruning.prune_smallest(weights, masks, rate)
        adjusted = flat(random_masks.natural(target, weights, seed=0, level=1))
        assert int(adjusted.sum()) == nnz(target)
        if rate == 0.2:
            assert adjusted[~Z].all()  # only Z is pruned
            assert adjusted[Z].any()
        else:
            assert not adjusted[Z].any()  # all of Z is pruned, and some more
            assert not adjusted[~Z].all()


def test_report_of_natural_sparsity():
    eps = torch.finfo(torch.float32).eps
    weights = {"a": torch.tensor([0.0, eps, -eps, 2 * eps]), "b": torch.ones(4)}
    assert random_masks.natural_sparsity(weights) == {"a": 0.75, "b": 0.0, "all": 0.375}
