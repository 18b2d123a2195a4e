# SPDX-License-Identifier: MIT
"""Datasets that stay decoded in memory."""
