# SPDX-License-Identifier: MIT
"""Spatial gating: CGNet and CDG (section 9 of the specification)."""
