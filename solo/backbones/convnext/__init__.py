# SPDX-License-Identifier: MIT
"""ConvNeXts (Liu et al., 2022)."""

from solo.backbones.options import lazy_builder, lazy_modules

__all__ = ["convnext_base", "convnext_large", "convnext_small", "convnext_tiny"]

convnext_tiny = lazy_builder(__name__, "convnext", "convnext_tiny")
convnext_small = lazy_builder(__name__, "convnext", "convnext_small")
convnext_base = lazy_builder(__name__, "convnext", "convnext_base")
convnext_large = lazy_builder(__name__, "convnext", "convnext_large")

__getattr__ = lazy_modules(__name__)
