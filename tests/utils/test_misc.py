# SPDX-License-Identifier: MIT
"""Small helpers against brute force and closed forms."""

import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from solo.data.datasets.digits import DigitsDataset
from solo.errors import DataError
from solo.utils.misc import (
    FilterInfNNan,
    compute_dataset_size,
    filter_inf_n_nan,
    generate_1d_sincos_pos_embed_from_grid,
    generate_2d_sincos_pos_embed,
    make_contiguous,
    omegaconf_select,
    set_default,
    trunc_normal_,
)
from solo.utils.param_groups import param_groups_layer_decay, remove_bias_and_norm_from_weight_decay
from solo.utils.ranks import concat_all_gather_no_grad, gather, get_rank

pytestmark = pytest.mark.unit

BAD = [math.nan, math.inf, -math.inf]


def test_select_and_default():
    cfg = OmegaConf.create({"a": {"b": "None", "c": 3}, "d": None})
    assert omegaconf_select(cfg, "a.b", 7) is None
    assert omegaconf_select(cfg, "a.c", 7) == 3
    assert omegaconf_select(cfg, "a.x", 7) == 7
    set_default(cfg, "a.b", 7)
    set_default(cfg, "a.c", 7)
    set_default(cfg, "d", {})
    set_default(cfg, "e.f", [1])
    assert cfg == {"a": {"b": None, "c": 3}, "d": {}, "e": {"f": [1]}}


@pytest.mark.parametrize("shape", [(5,), (5, 3)])
@pytest.mark.parametrize("bad", BAD)
def test_filter_one_tensor(shape, bad):
    x = torch.randn(shape)
    x[2] = bad
    kept = torch.tensor([0, 1, 3, 4])
    assert torch.equal(filter_inf_n_nan(x), x[kept])
    filtered, mask = filter_inf_n_nan(x, return_indexes=True)
    assert torch.equal(filtered, x[kept])
    assert mask.tolist() == [True, True, False, True, True]


def test_filter_several_tensors_jointly():
    x, y = torch.randn(4, 2), torch.randn(4)
    x[0, 1], y[3] = math.nan, math.inf
    fx, fy = filter_inf_n_nan([x, y])
    assert torch.equal(fx, x[1:3])
    assert torch.equal(fy, y[1:3])


def test_filter_rejects_other_ranks():
    with pytest.raises(RuntimeError, match="3 dimensions"):
        filter_inf_n_nan(torch.zeros(1, 2, 3))


def test_filter_module_forwards_attributes():
    wrapped = FilterInfNNan(nn.Linear(2, 3))
    assert wrapped.out_features == 3
    assert wrapped(torch.tensor([[0.0, 1], [math.nan, 0]])).shape == (1, 3)
    with pytest.raises(AttributeError):
        wrapped.no_such_thing


def test_one_process_gathers_itself():
    x = torch.randn(3, 2, requires_grad=True)
    gather(x).sum().backward()
    assert torch.equal(gather(x), x)
    assert torch.equal(x.grad, torch.ones(3, 2))
    assert torch.equal(concat_all_gather_no_grad(x), x)
    assert get_rank() == 0


def test_dataset_sizes(tmp_path):
    assert compute_dataset_size("cifar10") == 50_000
    assert compute_dataset_size("CIFAR100", train=False) == 10_000
    assert compute_dataset_size("stl10") == 105_000
    for train in (True, False):
        assert compute_dataset_size("digits", train=train) == len(DigitsDataset(train=train))
    assert compute_dataset_size("stl10", train=False, data_fraction=0.5) == 4_000
    for name, count in (("a", 3), ("b", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.png").touch()
    assert compute_dataset_size("custom", data_path=tmp_path) == 5
    assert compute_dataset_size(data_path=tmp_path / "a", no_labels=True) == 3
    with pytest.raises(DataError, match="no folder"):
        compute_dataset_size("custom", data_path=tmp_path / "missing")


def test_make_contiguous():
    module = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    before = module.weight.detach().clone()
    make_contiguous(module)
    assert module.weight.is_contiguous()
    assert torch.equal(module.weight, before)


def test_trunc_normal_stays_inside():
    x = trunc_normal_(torch.empty(1000), std=1.0, a=-0.5, b=0.25)
    assert x.min() >= -0.5
    assert x.max() <= 0.25


def test_position_tables():
    table = generate_1d_sincos_pos_embed_from_grid(4, np.arange(3.0))
    for position in range(3):
        for i in range(2):
            angle = position / 10000 ** (i / 2)
            assert table[position, i] == pytest.approx(math.sin(angle))
            assert table[position, 2 + i] == pytest.approx(math.cos(angle))
    square = generate_2d_sincos_pos_embed(8, 3, cls_token=True)
    assert square.shape == (10, 8)
    assert not square[0].any()
    for row in range(3):
        for column in range(3):
            cell = square[1 + 3 * row + column]
            # MAE puts the column (w) first
            np.testing.assert_allclose(cell[:4], table[column])
            np.testing.assert_allclose(cell[4:], table[row])
    with pytest.raises(ValueError, match="even"):
        generate_2d_sincos_pos_embed(7, 2)


def test_bias_and_norm_lose_weight_decay():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    only_bias = nn.Parameter(torch.zeros(3))
    groups = remove_bias_and_norm_from_weight_decay(
        [
            {"name": "net", "params": net.parameters(), "lr": 0.5, "static_lr": True},
            {"params": [only_bias], "weight_decay": 0.1},
        ]
    )
    assert [group.get("name") for group in groups] == ["net", "net_no_decay", None]
    assert [len(group["params"]) for group in groups] == [1, 3, 1]
    assert [group.get("weight_decay") for group in groups] == [None, 0, 0]
    assert [group.get("lr") for group in groups] == [0.5, 0.5, None]
    assert groups[1]["static_lr"] is True


def test_layer_decay_groups_of_a_vit():
    import timm

    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=0)
    vit.norm.bias.requires_grad = False
    groups = param_groups_layer_decay(vit, 0.05, vit.no_weight_decay(), 0.5)
    ids = {id(p): group for group in groups for p in group["params"]}
    assert len(ids) == sum(len(group["params"]) for group in groups)
    assert id(vit.norm.bias) not in ids
    # stem, three blocks; timm counts the final norm with the last block
    assert ids[id(vit.patch_embed.proj.weight)]["lr_scale"] == 0.125
    assert [ids[id(block.mlp.fc1.weight)]["lr_scale"] for block in vit.blocks] == [0.25, 0.5, 1]
    assert ids[id(vit.norm.weight)]["lr_scale"] == 1
    assert ids[id(vit.pos_embed)]["weight_decay"] == 0
    assert ids[id(vit.blocks[0].mlp.fc1.bias)]["weight_decay"] == 0
    assert ids[id(vit.blocks[0].mlp.fc1.weight)]["weight_decay"] == 0.05
    assert all(set(group) == {"lr_scale", "weight_decay", "params"} for group in groups)


def test_layer_decay_without_a_grouping_of_its_own():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2))
    groups = param_groups_layer_decay(net, 0.1, (), 0.5)
    ids = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert [ids[id(net[i].weight)] for i in (0, 2, 3)] == [0.25, 0.5, 1.0]
