# SPDX-License-Identifier: MIT
"""AlexNet (Krizhevsky, 2014) and VGG-19 as Caron et al. (2020) prune them."""

from solo.backbones.options import lazy_builder, lazy_modules

__all__ = ["alexnet", "vgg19"]

alexnet = lazy_builder(__name__, "alex_net", "alexnet")
vgg19 = lazy_builder(__name__, "vgg", "vgg19")

__getattr__ = lazy_modules(__name__)
