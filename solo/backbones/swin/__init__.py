# SPDX-License-Identifier: MIT
"""Swin transformers (Liu et al., 2021)."""

from solo.backbones.options import lazy_builder, lazy_modules

__all__ = ["swin_base", "swin_large", "swin_small", "swin_tiny"]

swin_tiny = lazy_builder(__name__, "swin", "swin_tiny")
swin_small = lazy_builder(__name__, "swin", "swin_small")
swin_base = lazy_builder(__name__, "swin", "swin_base")
swin_large = lazy_builder(__name__, "swin", "swin_large")

__getattr__ = lazy_modules(__name__)
