# SPDX-License-Identifier: MIT
"""Tiny encoders with masks that empty channels."""

from __future__ import annotations

import torch
from omegaconf import OmegaConf
from torch import nn

from solo.backbones import build_encoder
from sparse_ext.config.sections import build
from sparse_ext.masks.masked_layers import masked_layers
from sparse_ext.masks.masking import patch

SECTION = {"name": "gmp", "granularity": "filter", "final": 0.5}


def encoder(name="resnet18", dataset="cifar10", seed=0, **kwargs) -> nn.Module:
    """An encoder of solo whose batch norms have seen data and learnt shifts of both signs."""
    torch.manual_seed(seed)
    cfg = {"method": "simclr", "backbone": {"name": name, "kwargs": kwargs}}
    net = build_encoder(OmegaConf.create({**cfg, "data": {"dataset": dataset}}))
    shake(net)
    return net


@torch.no_grad()
def shake(net: nn.Module) -> None:
    """Affine parameters and running statistics as after training."""
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def masked(net: nn.Module, **section) -> nn.Module:
    """Masks, all ones."""
    return patch(net, build({**SECTION, **section}))


@torch.no_grad()
def empty(net: nn.Module, layer: str, outputs) -> None:
    """Mask some outputs of a layer."""
    found = masked_layers(net)[layer]
    found.mask[outputs] = False
    found.apply_mask()


def images(size=16, n=4, seed=3) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def features(net: nn.Module, size=16, n=4) -> torch.Tensor:
    """In eval mode."""
    with torch.no_grad():
        return net.eval()(images(size, n))
