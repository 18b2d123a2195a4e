# SPDX-License-Identifier: MIT
"""ResNets (He et al., 2016)."""

from solo.backbones.options import lazy_builder, lazy_modules

__all__ = ["resnet18", "resnet50"]

resnet18 = lazy_builder(__name__, "resnet", "resnet18")
resnet50 = lazy_builder(__name__, "resnet", "resnet50")

__getattr__ = lazy_modules(__name__)
