# SPDX-License-Identifier: MIT
"""Every encoder has solo-learn's parameters: count, names, shapes."""

import re
import warnings
from pathlib import Path

import pytest
import torch

from solo.backbones import BACKBONES, features_dim

pytestmark = pytest.mark.unit

# name: parameters, features (sizes whose full layout is not listed in layouts.txt)
COUNTS = {
    "vit_small": (21665664, 384),
    "vit_base": (85798656, 768),
    "vit_large": (303301632, 1024),
    "convnext_small": (49454688, 768),
    "convnext_base": (87566464, 1024),
    "convnext_large": (196230336, 1536),
    "swin_small": (48837258, 768),
    "swin_base": (86743224, 1024),
    "swin_large": (194995476, 1536),
    "poolformer_s24": (20875968, 512),
    "poolformer_s36": (30349760, 512),
    "poolformer_m36": (55403520, 768),
    "poolformer_m48": (72704448, 768),
    # one-column AlexNet and the modified VGG-19, both with batch normalisation
    "alexnet": (57013184, 4096),
    "vgg19": (20029888, 512),
}


def read_layouts():
    layouts, current = {}, None
    for line in Path(__file__).with_name("layouts.txt").read_text().splitlines():
        if line.startswith("["):
            name, method, *facts = line.strip("[]").split()
            current = layouts.setdefault((name, method), (tuple(map(int, facts)), []))[1]
        elif not line.startswith("#"):
            current.append(tuple(line.split()))
    return layouts


LAYOUTS = read_layouts()


def shape_name(tensor):
    return "x".join(map(str, tensor.shape)) or "scalar"


def layout_of(state):
    found = {}
    for key, value in state.items():
        found.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", key), []).append(shape_name(value))
    # `-` where there is only one tensor is left out of the file
    return [
        (pattern, str(len(shapes)), shapes[0], *([shapes[-1]] if len(shapes) > 1 else []))
        for pattern, shapes in found.items()
    ]


def build(name, method=None, **kwargs):
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("error")
        return BACKBONES[name](method, **kwargs)


@pytest.mark.parametrize(("name", "method"), LAYOUTS)
def test_layout(name, method):
    net = build(name, None if method == "None" else method)
    (params, trainable, keys, features), lines = LAYOUTS[name, method]
    sizes = [(p.numel(), p.requires_grad) for p in net.parameters()]
    assert sum(n for n, _ in sizes) == params
    assert sum(n for n, grad in sizes if grad) == trainable
    assert len(net.state_dict()) == keys
    assert features_dim(net) == features
    assert layout_of(net.state_dict()) == lines


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_the_other_sizes(name):
    net = build(name)
    assert (sum(p.numel() for p in net.parameters()), net.num_features) == COUNTS[name]


def test_every_encoder_is_checked():
    assert {name for name, _ in LAYOUTS} | set(COUNTS) == set(BACKBONES)


@pytest.mark.parametrize("name", ["vit_small", "vit_base", "vit_large"])
def test_heads_differ_by_method(name):
    plain, moco, mae = (build(name, method) for method in (None, "MoCoV3", "mae"))
    sizes = {"vit_small": (6, 12), "vit_base": (12, 12), "vit_large": (16, 16)}
    heads = [net.blocks[0].attn.num_heads for net in (plain, moco, mae)]
    assert heads == [sizes[name][0], sizes[name][1], sizes[name][1]]
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (plain, moco, mae)]
    assert shapes[0] == shapes[1] == shapes[2]


def test_no_weight_decay_where_solo_learn_has_it():
    assert build("vit_tiny").no_weight_decay() >= {"pos_embed", "cls_token"}
    assert build("vit_tiny", "mae").no_weight_decay() >= {"pos_embed", "cls_token"}
    tables = [k for k in build("swin_tiny").state_dict() if "relative_position_bias_table" in k]
    assert set(tables) == set(build("swin_tiny").no_weight_decay())
    for name in ("poolformer_s12", "wide_resnet28w2", "resnet18", "convnext_tiny"):
        assert not hasattr(build(name), "no_weight_decay")
