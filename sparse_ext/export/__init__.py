# SPDX-License-Identifier: MIT
"""Sparse encoders for use outside of training: dense weights with zeros, and packed files."""

from sparse_ext.export.packed import load_packed, save_packed
from sparse_ext.export.strip import masked_weights, strip

__all__ = ["load_packed", "masked_weights", "save_packed", "strip"]
