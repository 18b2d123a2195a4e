#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  torch 2.14.1, CPU.
# Guess:     in a model cast by .bfloat16() running statistics are right to bfloat16's two or three
#            digits, and the plain average over all batches (momentum=None, which
#            torch.optim.swa_utils.update_bn uses) is the more exact one.
# Behaviour: the running statistics are bfloat16 too, and an update smaller than half of their last
#            digit is lost. At momentum 0.01 they stop wherever they are once they are within a
#            third of the truth. The average over all batches reaches the truth at the first batch
#            and then drifts: (1 - 1/n) and 1/n are rounded separately, and after some hundred
#            batches every step shrinks the mean until it rests on a power of two.
# Seen:      3000 batches of mean 3 and variance 4. Mean in bfloat16: 2.95 (momentum 0.1), 2.03
#            (momentum 0.01), 2.00 (update_bn); variance 3.96, 3.34, 3.91. In float32 within 0.01.
#            A bfloat16 input with float32 statistics, as under autocast, is right.
exec "$(dirname "$0")/run_with" torch==2.14.1 numpy==2.4.6 <<'PYTHON'
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from expect import expect

print(f"torch {torch.__version__}")


def batches(dtype, count=3000):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield (3 + 2 * torch.randn(64, 256, generator=generator)).to(dtype)


def statistics(norm, inputs):
    if norm.momentum is None:
        update_bn(inputs, nn.Sequential(norm))
    else:
        for x in inputs:
            norm(x)
    return norm.running_mean.float().mean().item(), norm.running_var.float().mean().item()


def norm(momentum, dtype):
    return nn.BatchNorm1d(256, momentum=momentum, affine=False).to(dtype)


for momentum, low, high in ((0.1, 2.9, 2.98), (0.01, 1.9, 2.3), (None, 1.9, 2.3)):
    mean, var = statistics(norm(momentum, torch.bfloat16), batches(torch.bfloat16))
    expect(f"bfloat16, momentum {momentum}: mean {mean:.3f}, variance {var:.3f}", low < mean < high)
    mean, var = statistics(norm(momentum, torch.float32), batches(torch.float32))
    expect(
        f"float32, momentum {momentum}: mean {mean:.3f}, variance {var:.3f}",
        abs(mean - 3) < 0.01 and abs(var - 4) < 0.02,
    )
mean, var = statistics(norm(0.01, torch.float32), batches(torch.bfloat16))
expect(
    f"bfloat16 input, float32 statistics: mean {mean:.3f}, variance {var:.3f}",
    abs(mean - 3) < 0.01 and abs(var - 4) < 0.02,
)
PYTHON
