# SPDX-License-Identifier: MIT
"""Encoders whose weights have stopped changing: what the kernel reads of them is read once."""

from __future__ import annotations

import copy

from torch import nn

from sparse_ext.kernels.element.swap import element_layers, use_element_kernel


def faster(encoder: nn.Module) -> nn.Module:
    """A copy of a sparse encoder for inference on the CPU, by its kept weights where that pays.

    Layers are measured for every new shape of their input, batches of one image too. Weights and
    masks are read once, and again when torch counts a change of them (`load_state_dict`, operations
    in place; not writes through `.data` or numpy). `torch.export` and `torch.compile` find the
    kernel as `torch.ops.sparse_ext.element_conv2d` in it.

    Args:
        encoder: with masks.

    Raises:
        ConfigError: no layer has a mask that the kernel could use.
        KernelBuildError: the kernel is not built and cannot be compiled here.
    """
    net = copy.deepcopy(encoder).eval().requires_grad_(False)
    use_element_kernel(net)
    for layer in element_layers(net):
        layer.frozen = True
    return net


class Faster:
    """`faster` of one encoder, as a method that `solo.load_pretrained`'s encoders get."""

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder

    def __call__(self) -> nn.Module:
        return faster(self.encoder)
