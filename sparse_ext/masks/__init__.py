# SPDX-License-Identifier: MIT
"""Masks on an encoder: masked layers, what is prunable, units of pruning, mask files."""

from sparse_ext.masks.mask_set import MaskSet

__all__ = ["MaskSet"]
