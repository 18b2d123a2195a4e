# SPDX-License-Identifier: MIT
"""Torch-Pruning's smaller network of equal multiply-accumulates, for `slim_models.py`."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import nn

from sparse_ext.cost.per_layer import count

TRIES = 7  # ratios that are tried


def smaller(
    net: nn.Module, macs: float, multiple: int, size: int
) -> tuple[nn.Module | None, float, float]:
    """The network without channels, a difference that nobody knows, and seconds.

    Heads and parameters outside of layers are told to it, as its own examples do. All layers lose
    the same ratio, the smallest of some with which no more than `macs` are left.

    Args:
        net: of timm; a copy is pruned.
        macs: multiply-accumulates per image that may be left.
        multiple: of every width.
        size: side of an image.
    """
    low, high, best, took = 0.0, 1.0, None, 0.0
    for _ in range(TRIES):
        ratio = (low + high) / 2
        start = time.process_time()
        try:
            found = _pruned(copy.deepcopy(net), ratio, multiple, size)
            cost = count(found, size).macs_dense
        except Exception as error:  # whatever it cannot do
            print(f"  Torch-Pruning, ratio {ratio:.2f}: {type(error).__name__}: {error}"[:160])
            return None, 0.0, 0.0
        if cost <= macs:
            high, best, took = ratio, found, time.process_time() - start
        else:
            low = ratio
    return best, 0.0, took


def _pruned(net: nn.Module, ratio: float, multiple: int, size: int) -> nn.Module:
    import torch_pruning as tp

    heads = {m.qkv: m.num_heads for m in net.modules() if hasattr(m, "qkv")}
    apart = ("cls_token", "pos_embed", "gamma")
    loose: list[Any] = [
        (p, p.ndim - 1) for n, p in net.named_parameters() if n.rpartition(".")[2] in apart
    ]
    with torch.enable_grad():
        pruner = tp.pruner.MagnitudePruner(
            net,
            torch.randn(1, 3, size, size),
            importance=tp.importance.GroupMagnitudeImportance(p=1),
            pruning_ratio=ratio,
            round_to=multiple,
            num_heads=heads,
            unwrapped_parameters=loose,
            ignored_layers=_last(net),
        )
        pruner.step()
    for module in net.modules():
        if hasattr(module, "qkv"):  # as in its example for timm
            module.num_heads = pruner.num_heads[module.qkv]
            width = module.qkv.out_features // 3
            module.head_dim = width // module.num_heads
            module.attn_dim = width  # what newer timm reshapes by
    return net.eval()


def _last(net: nn.Module) -> list[nn.Module]:
    """The classifier keeps its outputs."""
    return [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
