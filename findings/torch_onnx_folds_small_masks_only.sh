#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  torch 2.14.1, onnx 1.23.2, onnxscript 0.7.2.
# Guess:     torch.onnx.export folds `weight * mask` of two constants into one tensor with zeros,
#            or leaves it to the runtime, in all layers alike.
# Behaviour: it depends on the layer's size. A small masked convolution is exported with one folded
#            weight; a larger one with weight, mask and a Mul, so that the file is twice as large
#            and no initializer holds a zero: whatever looks for sparsity or N:M patterns in the
#            initializers finds the small layers only.
# Seen:      16 channels: one initializer of 2304 numbers, half of them zero. 64 channels: weight
#            and mask, 73728 numbers, none of the weight's zero.
exec "$(dirname "$0")/run_with" torch==2.14.1 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 \
    <<'PYTHON'
import logging

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from expect import expect

logging.disable(logging.WARNING)
print(f"torch {torch.__version__}, onnx {onnx.__version__}")


class Masked(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3))
        self.register_buffer("mask", (torch.rand(self.weight.shape) < 0.5).float())

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight * self.mask, padding=1)


def export(channels):
    torch.manual_seed(0)
    program = torch.onnx.export(
        Masked(channels).eval(), (torch.randn(1, channels, 8, 8),), dynamo=True, verbose=False
    )
    graph = program.model_proto.graph
    return [node.op_type for node in graph.node], {
        tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
    }


operators, tensors = export(16)
share = float(np.mean(next(iter(tensors.values())) == 0))
expect(
    f"16 channels: {operators}, {sum(t.size for t in tensors.values())} numbers, "
    f"{share:.0%} of them zero",
    operators == ["Conv"] and len(tensors) == 1 and 0.4 < share < 0.6,
)
operators, tensors = export(64)
expect(
    f"64 channels: {operators}, {sorted(tensors)}, {sum(t.size for t in tensors.values())} numbers",
    operators == ["Mul", "Conv"] and sorted(tensors) == ["mask", "weight"],
)
expect("no zero in the weight", bool(np.all(tensors["weight"] != 0)))
PYTHON
