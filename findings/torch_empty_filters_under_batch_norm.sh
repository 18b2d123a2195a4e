#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  torch 2.14.1.
# Guess:     a filter whose weights have all been pruned to zero gets a gradient of about the size
#            of a live filter's, so that methods which regrow weights by their gradient see it on
#            equal terms.
# Behaviour: behind batch norm and ReLU it gets none or a huge one. Its output is constant, so the
#            norm's bias decides: at 0 and below the ReLU is shut and the gradient is exactly zero,
#            for ever; just above it the gradient is divided by sqrt(eps) instead of by a standard
#            deviation, two orders of magnitude above a live filter's, and outranks everything.
# Seen:      gradient of the emptied filter over that of the median live one: 0 at bias -0.01 and
#            0, 574 at bias 0.01.
exec "$(dirname "$0")/run_with" torch==2.14.1 numpy==2.4.6 <<'PYTHON'
import torch
from torch import nn

from expect import expect

print(f"torch {torch.__version__}")


def ratio(bias):
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16)
    nn.init.kaiming_normal_(convolution.weight)
    with torch.no_grad():
        convolution.weight[0] = 0
        norm.bias.fill_(bias)
    features = nn.functional.relu(norm(convolution(torch.randn(32, 8, 10, 10))))
    (features * torch.randn(features.shape)).sum().backward()
    norms = convolution.weight.grad.flatten(1).norm(dim=1)
    return (norms[0] / norms[1:].median()).item()


for bias in (-0.01, 0.0):
    found = ratio(bias)
    expect(f"bias {bias}: {found:.1f} times a live filter's gradient", found == 0)
found = ratio(0.01)
expect(f"bias 0.01: {found:.0f} times", 100 < found < 3000)
PYTHON
