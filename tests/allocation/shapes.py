# SPDX-License-Identifier: MIT
"""Weight shapes and MACs of the reference networks, from torchvision on the meta device."""

from functools import cache

import torch
import torchvision
from torch import nn


@cache
def macs_and_shapes(name: str) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """MACs and weight shape per layer of `resnet18_cifar` (no FC) or `resnet50` (FC, at 224)."""
    with torch.device("meta"):
        if name == "resnet18_cifar":
            model, size = torchvision.models.resnet18(), 32
            model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
            model.maxpool, model.fc = nn.Identity(), nn.Identity()
        else:
            model, size = torchvision.models.resnet50(), 224
        layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        macs = {}
        for layer_name, layer in layers.items():
            layer.register_forward_hook(_recorder(macs, layer_name))
        model.eval()(torch.empty(1, 3, size, size))
    return macs, {n: tuple(layer.weight.shape) for n, layer in layers.items()}


def _recorder(macs, name):
    def hook(module, inputs, output):
        macs[name] = module.weight.numel() * output[0, 0].numel()

    return hook
