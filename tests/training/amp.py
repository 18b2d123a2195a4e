# SPDX-License-Identifier: MIT
"""Loss scaling without half precision."""

from contextlib import nullcontext

import torch
from lightning.pytorch.plugins import MixedPrecision


class ScaledFloat32(MixedPrecision):
    """The loss scaling of fp16 without its rounding."""

    def __init__(self, scale):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        super().__init__("16-mixed", device="cpu", scaler=scaler)

    def forward_context(self):
        return nullcontext()
