# SPDX-License-Identifier: MIT
"""VGG-19 (Simonyan and Zisserman, 2015) without its multi-layer perceptron (Morcos et al. 2019)."""

from solo.backbones.options import lazy_builder

__all__ = ["vgg19"]

vgg19 = lazy_builder(__name__, "vgg", "vgg19")
