# SPDX-License-Identifier: MIT
"""Pipelines of NVIDIA DALI, built from one table of operations."""
