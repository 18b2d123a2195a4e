# SPDX-License-Identifier: MIT
"""Masked layers for the kernels' tests."""

import shutil

import pytest
import torch
from torch import nn
from torchvision.models.resnet import ResNet

from sparse_ext.kernels.element import choice, native
from sparse_ext.masks.masked_layers import mask_module

able = pytest.mark.skipif(
    not native.variant() or not shutil.which("c++"), reason="needs AVX2 and a C++ compiler"
)


def prune(layer, sparsity=0.8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.mask.copy_(torch.rand(layer.weight.shape, generator=generator) >= sparsity)
        layer.apply_mask()
    return layer


def masked_conv(**kwargs):
    return prune(mask_module(nn.Conv2d(16, 24, 3, padding=1, **kwargs)))


def resnet(block, stem=True):
    torch.manual_seed(0)
    net = ResNet(block, [1, 1, 1, 1], num_classes=10)
    net.maxpool = nn.Identity()
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    for module in net.modules():
        if type(module) in (nn.Conv2d, nn.Linear) and module is not net.conv1:
            prune(mask_module(module), 0.9)
    return net


@pytest.fixture(autouse=True)
def no_choice_remembered(monkeypatch):
    monkeypatch.setattr(choice, "_bounds", choice.Bounds(None))
    monkeypatch.setattr(choice, "_state", {"failed": False})
