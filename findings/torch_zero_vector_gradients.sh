#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  torch 2.14.1.
# Guess:     the gradient of a cosine loss at a zero vector is zero (nothing to turn), or at least
#            the same whether one writes F.cosine_similarity or normalises and multiplies.
# Behaviour: it is the target direction divided by eps, and the two have different eps: 1e-8 and
#            1e-12. One all-zero row (a dead ReLU, a gated or pruned branch) has a gradient ten
#            thousand million times a usual one, and in one spelling ten thousand times that of the
#            other. In float16 eps rounds to zero, and the value itself is NaN in both.
# Seen:      for a unit target: 1e8 from F.cosine_similarity, 1e12 from F.normalize; 0.88 for a row
#            of length 1. In float16 both losses are NaN.
exec "$(dirname "$0")/run_with" torch==2.14.1 numpy==2.4.6 <<'PYTHON'
import torch
from torch.nn import functional

from expect import expect

print(f"torch {torch.__version__}")
target = functional.normalize(torch.tensor([[3.0, 4.0, 0.0]]), dim=1)


def spellings(x):
    return {
        "cosine_similarity": functional.cosine_similarity(x, target.to(x.dtype)).sum(),
        "normalize": (functional.normalize(x, dim=1) * target.to(x.dtype)).sum(),
    }


def gradient(row, name, dtype=torch.float32):
    x = torch.tensor([row], dtype=dtype, requires_grad=True)
    spellings(x)[name].backward()
    return x.grad.float().norm().item()


for name, eps in (("cosine_similarity", 1e-8), ("normalize", 1e-12)):
    at_zero, usual = gradient([0.0, 0.0, 0.0], name), gradient([0.0, 0.6, 0.8], name)
    expect(
        f"{name}: {at_zero:.1e} at zero, {usual:.2f} at length 1",
        abs(at_zero * eps - 1) < 1e-3 and usual < 1,
    )
half = spellings(torch.zeros(1, 3, dtype=torch.float16))
for name, value in half.items():
    expect(f"{name} of a zero row in float16: {value.item()}", bool(value.isnan()))
PYTHON
