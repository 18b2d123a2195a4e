# SPDX-License-Identifier: MIT
"""Wide ResNets for small images (Zagoruyko and Komodakis, 2016)."""

from solo.backbones.options import lazy_builder, lazy_modules

__all__ = ["wide_resnet28w2", "wide_resnet28w8"]

wide_resnet28w2 = lazy_builder(__name__, "wide_resnet", "wide_resnet28w2")
wide_resnet28w8 = lazy_builder(__name__, "wide_resnet", "wide_resnet28w8")

__getattr__ = lazy_modules(__name__)
