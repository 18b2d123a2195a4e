# SPDX-License-Identifier: MIT
"""Pruning of a trained encoder without training: scores, least squares, run folders."""
