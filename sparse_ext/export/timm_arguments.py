# SPDX-License-Identifier: MIT
"""Arguments with which timm builds a slim network, where its widths are such that it can."""

from __future__ import annotations

from typing import Any

from torch import nn


def arguments(net: nn.Module) -> dict[str, Any]:
    """Arguments of timm's constructors that give a network these widths; empty if none would.

    Vision transformers with hidden layers of one width have an `mlp_ratio`; ResNets all of whose
    blocks have lost the same share of their inner channels a `base_width`. Widths that differ
    between blocks, and streams that are narrower, are beyond such arguments.

    Args:
        net: a slim encoder in timm's layout.
    """
    return _transformer(net) or _resnet(net)


def _transformer(net: nn.Module) -> dict[str, Any]:
    layers = [fc for m in net.modules() if isinstance(fc := getattr(m, "fc1", None), nn.Linear)]
    pairs = {(fc.out_features, fc.in_features) for fc in layers}
    if not hasattr(net, "blocks") or len(pairs) != 1:
        return {}
    hidden, width = pairs.pop()
    ratio = hidden / width
    exact = (r for r in (ratio, (hidden + 0.5) / width) if int(width * r) == hidden)
    return {"mlp_ratio": next(exact, ratio)}


def _resnet(net: nn.Module) -> dict[str, Any]:
    """Blocks of timm's bottleneck are floor(planes * base_width / 64) * cardinality wide."""
    blocks: list[Any] = [m for m in net.modules() if hasattr(m, "conv3") and hasattr(m, "conv1")]
    shares = set()
    for block in blocks:
        planes = block.conv3.out_channels // 4
        shares.add(64 * block.conv2.out_channels / planes / block.conv2.groups)
    share = shares.pop() if len(shares) == 1 else 0.5
    return {} if share % 1 else {"base_width": int(share)}
