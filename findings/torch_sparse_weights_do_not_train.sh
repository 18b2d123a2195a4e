#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  torch 2.14.1, CPU.
# Guess:     a Linear layer whose weight is a sparse tensor trains: the forward pass accepts it, so
#            the gradient lives on the kept entries and torch.optim.SGD updates those.
# Behaviour: the forward pass is right in CSR and COO. The gradient is a dense tensor of the full
#            shape, non-zero at the pruned places too, so that memory is saved nowhere (good news
#            only for whoever wants to regrow). No optimizer takes it: SGD and AdamW raise for
#            either layout. copy.deepcopy of the layer raises as well, so that a momentum encoder
#            cannot be made.
# Seen:      8x8 weight with 22 kept entries: gradient strided with 64 non-zeros; SGD, AdamW and
#            deepcopy raise RuntimeError, in CSR and in COO.
exec "$(dirname "$0")/run_with" torch==2.14.1 numpy==2.4.6 <<'PYTHON'
import copy

import torch
from torch import nn

from expect import expect

print(f"torch {torch.__version__}")
torch.manual_seed(0)
weight = torch.randn(8, 8) * (torch.rand(8, 8) < 0.3)
kept = int((weight != 0).sum())
x = torch.randn(3, 8)


def layer(convert):
    linear = nn.Linear(8, 8, bias=False)
    linear.weight = nn.Parameter(convert(weight))
    return linear


def step(linear, optimizer):
    optimizer = optimizer(linear.parameters(), lr=0.1)
    linear(x).sum().backward()
    optimizer.step()


def raises(action, *arguments):
    try:
        action(*arguments)
    except RuntimeError:
        return True
    return False


for name, convert in {"CSR": torch.Tensor.to_sparse_csr, "COO": torch.Tensor.to_sparse}.items():
    linear = layer(convert)
    y = linear(x)
    expect(f"{name}: the forward pass is right", bool(torch.allclose(y, x @ weight.T, atol=1e-5)))
    y.sum().backward()
    gradient = linear.weight.grad
    expect(
        f"{name}: gradient {gradient.layout}, {int((gradient != 0).sum())} non-zeros, {kept} kept",
        gradient.layout == torch.strided and int((gradient != 0).sum()) == 64,
    )
    for optimizer in (torch.optim.SGD, torch.optim.AdamW):
        expect(f"{name}: {optimizer.__name__} raises", raises(step, layer(convert), optimizer))
    expect(f"{name}: deepcopy raises", raises(copy.deepcopy, layer(convert)))
PYTHON
