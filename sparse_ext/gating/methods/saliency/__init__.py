# SPDX-License-Identifier: MIT
"""Channels picked by a saliency network: FBS and DGC (section 10 of the specification)."""
