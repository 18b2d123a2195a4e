#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  torch 2.14.1, timm 1.0.31.
# Guess:     antialias=True matters when an image shrinks; enlarging has nothing to alias, so both
#            settings give the same.
# Behaviour: they use different bicubic kernels: a = -0.75 without antialias, a = -0.5 (Pillow's)
#            with it, whatever the direction. timm resamples position embeddings with antialias,
#            DINO's and MAE's own code without: the same checkpoint at a larger image has other
#            embeddings.
# Seen:      the weights around a unit impulse, enlarged twice: 0.8789 and 0.8672 beside it; a
#            random 14x14 embedding to 16x16: 8.1 % (relative l2) between the two settings.
exec "$(dirname "$0")/run_with" torch==2.14.1 torchvision==0.29.1 timm==1.0.31 <<'PYTHON'
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch.nn.functional import interpolate

from expect import expect

print(f"torch {torch.__version__}, timm {timm.__version__}")


def enlarge(x, size, antialias):
    return interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=antialias)


def kernel(x, a):
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


impulse = torch.zeros(1, 1, 8, 8)
impulse[..., 3] = 1
for antialias, a in ((False, -0.75), (True, -0.5)):
    beside = enlarge(impulse, (8, 16), antialias)[0, 0, 0, 6].item()
    expect(
        f"antialias={antialias}: {beside:.4f} beside the impulse, a = {a}",
        abs(beside - kernel(0.25, a)) < 1e-5,
    )

torch.manual_seed(0)
grid = torch.randn(1, 64, 14, 14)
plain, smooth = (enlarge(grid, (16, 16), flag) for flag in (False, True))
difference = ((plain - smooth).norm() / plain.norm()).item()
expect(f"14x14 to 16x16: {difference:.1%} apart", 0.01 < difference < 0.1)
tokens = resample_abs_pos_embed(grid.flatten(2).transpose(1, 2), (16, 16), num_prefix_tokens=0)
resampled = tokens.transpose(1, 2).view_as(smooth)
expect("timm takes the one with antialias", bool(torch.allclose(resampled, smooth, atol=1e-5)))
PYTHON
