#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  torchvision 0.29.1, torch 2.14.1.
# Guess:     RandomResizedCrop(scale=(0.08, 1)) draws a random place in an image of any shape; two
#            views of one image are two places.
# Behaviour: ten tries are made at a size that fits; then the largest crop in the middle is taken.
#            In an image of 1:8 more than half of the draws end there, in one of 1:20 all of them:
#            both views of a positive pair are then the same pixels, and all but the middle is
#            never seen.
# Seen:      share of draws at the middle crop: 0 % at 1:1 and 1:2, 12 % at 1:4, 57 % at 1:8, 100 %
#            at 1:20. At 1:8 a third of the pairs of views are the same crop twice.
exec "$(dirname "$0")/run_with" torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 <<'PYTHON'
from collections import Counter

import torch
import torchvision
from torchvision.transforms import RandomResizedCrop

from expect import expect

print(f"torchvision {torchvision.__version__}")
torch.manual_seed(0)
DRAWS = 4000
for ratio, low, high in ((1, 0, 0.01), (2, 0, 0.01), (4, 0.09, 0.15), (8, 0.53, 0.61), (20, 1, 1)):
    image = torch.empty(3, 64 * ratio, 64)
    crops = [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(DRAWS)]
    middle, count = Counter(crops).most_common(1)[0]
    share = count / DRAWS
    pairs = sum(a == b for a, b in zip(crops[::2], crops[1::2], strict=True)) / (DRAWS // 2)
    expect(f"1:{ratio}: {share:.0%} at {middle}, {pairs:.0%} of pairs equal", low <= share <= high)
PYTHON
