# SPDX-License-Identifier: MIT
"""Pruning: the pruner, what it ranks, how it regrows, what it logs."""
