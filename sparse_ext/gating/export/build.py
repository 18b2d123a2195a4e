# SPDX-License-Identifier: MIT
"""From a channel-gated encoder to one that computes open channels only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from solo.errors import ConfigError
from sparse_ext.config.reading import to_dict
from sparse_ext.gating.encoder import gating_of
from sparse_ext.gating.export.encoder import OpenEncoder
from sparse_ext.gating.export.layers import ConvShape, OpenBlock, OpenConv, OpenGate
from sparse_ext.gating.methods.channel.blocks import GatedBlock
from sparse_ext.gating.methods.channel.gate import ChannelGate
from sparse_ext.gating.methods.channel.method import ChannelGating


@torch.no_grad()
def export_gated(backbone: nn.Module, facts: Mapping[str, Any] | None = None) -> OpenEncoder:
    """The gated branch of an encoder as a network that computes open channels only.

    Args:
        backbone: a ResNet with channel gates; not changed. Of two encoders the gated one is taken.
        facts: what to keep beside it, such as the data set; its gating settings are added.

    Returns:
        a copy of its weights with batch norms folded in, in eval mode, on the same device.

    Raises:
        ConfigError: it has no gates, gates of another kind, or layers that cannot be exported.
    """
    gating = gating_of(backbone)
    if gating is None:
        raise ConfigError(
            "This encoder has no gates; `sparse_ext.export` is for dense and masked ones."
        )
    if not isinstance(gating.method, ChannelGating):
        raise ConfigError(
            f"gating={gating.config.name} does not close whole channels of a block, so there is "
            f"nothing to gather; vicreg_gating and vicreg_dual can be exported."
        )
    net: Any = backbone.gated if gating.method.two_encoders else backbone
    blocks = [
        block
        for name in ("layer1", "layer2", "layer3", "layer4")
        for block in getattr(net, name, ())
    ]
    if not blocks or not all(isinstance(block, GatedBlock) for block in blocks):
        raise ConfigError(f"{type(net).__name__} is no ResNet of gated blocks in layer1 to layer4.")
    facts = {**(facts or {}), "gating": to_dict(gating.config)}
    pool = not isinstance(net.maxpool, nn.Identity)
    outputs = net.fc.out_features if isinstance(net.fc, nn.Linear) else None
    empty = [_empty(block) for block in blocks]
    encoder = OpenEncoder(_shape(net.conv1), pool, empty, outputs, facts)
    _fill(encoder.stem, net.conv1, net.bn1)
    if encoder.head is not None:
        encoder.head.weight.copy_(net.fc.weight)
        encoder.head.bias.copy_(torch.tensor(0.0) if net.fc.bias is None else net.fc.bias)
    for mine, theirs in zip(encoder.blocks, blocks, strict=True):
        _fill_block(mine, theirs)
    return encoder.to(net.conv1.weight.device).eval()


def _shape(conv: nn.Conv2d) -> ConvShape:
    sizes = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    square = all(isinstance(pair, tuple) and pair[0] == pair[1] for pair in sizes)
    if not square or conv.dilation != (1, 1) or conv.groups > 1:
        raise ConfigError(f"Only square convolutions without dilation can be exported: {conv}.")
    kernel, stride, padding = (int(pair[0]) for pair in sizes[:3])
    return ConvShape(conv.in_channels, conv.out_channels, kernel, stride, padding)


def _empty(block: Any) -> OpenBlock:
    hidden = [getattr(block, name).reduce.out_channels for name in block.gates]
    shortcut = None if block.downsample is None else _shape(block.downsample[0])
    return OpenBlock([_shape(conv) for conv in block.own_convs()], hidden, shortcut)


def _fill_block(mine: Any, theirs: Any) -> None:
    for index, (target, conv) in enumerate(zip(mine.convs, theirs.own_convs(), strict=True), 1):
        norm = getattr(theirs, f"bn{index}_gated", None) or getattr(theirs, f"bn{index}")
        _fill(target, conv, norm)
    for target, name in zip(mine.gates, theirs.gates, strict=True):
        _fill_gate(target, getattr(theirs, name))
    if mine.shortcut is not None:
        _fill(mine.shortcut, *theirs.downsample)


def _fill(target: OpenConv, conv: Any, norm: nn.Module) -> None:
    """Fold the norm into the convolution's weight and bias."""
    scale, shift = _affine(norm)
    # a sparse method may keep pruned weights alive and mask them in the forward pass
    weight = (conv.seen_weight() if hasattr(conv, "seen_weight") else conv.weight).double()
    bias = 0 if conv.bias is None else conv.bias.double()
    target.fill(weight * scale.view(-1, 1, 1, 1), bias * scale + shift)


def _fill_gate(target: OpenGate, gate: ChannelGate) -> None:
    scale, shift = _affine(gate.norm)
    target.reduce.copy_(gate.reduce.weight.double().flatten(1) * scale.unsqueeze(1))
    target.shift.copy_(shift)
    target.expand.copy_(gate.expand.weight.flatten(1))
    if gate.expand.bias is not None:
        target.bias.copy_(gate.expand.bias)


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """What a batch norm does in eval mode, float64: x * scale + shift."""
    if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm) or norm.running_mean is None:
        raise ConfigError(f"A {type(norm).__name__} cannot be folded into a convolution.")
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale
