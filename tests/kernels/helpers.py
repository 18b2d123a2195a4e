# SPDX-License-Identifier: MIT
"""Masked layers for the kernels' tests."""

import shutil

import pytest
import torch
from torch import nn

from sparse_ext.kernels.element import native
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
