# SPDX-License-Identifier: MIT
"""One gated convolution, and the same in loops."""

import numpy as np
from torch import nn

from sparse_ext.gating.branches import BranchContext
from sparse_ext.gating.config.sections import build
from sparse_ext.gating.method import method_of
from sparse_ext.gating.methods.spatial.conv import gate_conv


def gated_conv(name="cgnet", inputs=8, outputs=8, branch="a1", **section):
    """A single 3x3 convolution with its own context; `branch` is the one it takes."""
    config = build({"name": name, "eval": branch, **section})
    method = method_of(config)
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    conv = gate_conv(conv, config, method.patterns())
    conv.name = "conv"
    conv.context = BranchContext(config.BRANCHES, branch, method.branch_of)
    return conv


def block_mask(pattern, outputs, inputs):
    """Ones (outputs, inputs) where a weight belongs to the base path, entry by entry."""
    mask = np.zeros((outputs, inputs), dtype=bool)
    for out in range(outputs):
        for into in range(inputs):
            group = out * len(pattern) // outputs
            mask[out, into] = pattern[group] == into * len(pattern) // inputs
    return mask


def reference(x, weight, tau, pattern, eps=1e-5, tile=1):
    """Output and decisions, block by block in loops, for numpy arrays and batch statistics.

    Args:
        pattern: the input group of the base path for each output group.
        tile: consecutive outputs that share a decision.
    """
    n, inputs, height, width = x.shape
    outputs = len(weight)
    inner = block_mask(pattern, outputs, inputs)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    base = np.zeros((n, outputs, height, width))
    conditional = np.zeros_like(base)
    for out in range(outputs):
        for into in range(inputs):
            target = base if inner[out, into] else conditional
            for i in range(height):
                for j in range(width):
                    patch = padded[:, into, i : i + 3, j : j + 3]
                    target[:, out, i, j] += (patch * weight[out, into]).sum((1, 2))
    salience, threshold = base.copy(), tau.copy()
    for start in range(0, outputs, tile):
        together = slice(start, start + tile)
        salience[:, together] = base[:, together].mean(1, keepdims=True)
        threshold[together] = tau[together].mean()
    decisions = np.zeros_like(base)
    for out in range(outputs):
        values = salience[:, out]
        u = (values - values.mean()) / np.sqrt(values.var() + eps) - threshold[out]
        decisions[:, out] = u > 0
    return base + conditional * decisions, decisions
