# SPDX-License-Identifier: MIT
"""How many weights each layer keeps, and which: densities per layer, exact budgets, top-k."""

from sparse_ext.allocation.budgets import (
    budget,
    check_sparsity,
    er,
    erk,
    erk_densities,
    exact_budgets,
    uniform,
)
from sparse_ext.allocation.topk import global_topk, keep_topk

__all__ = [
    "budget",
    "check_sparsity",
    "er",
    "erk",
    "erk_densities",
    "exact_budgets",
    "global_topk",
    "keep_topk",
    "uniform",
]
