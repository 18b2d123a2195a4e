# SPDX-License-Identifier: MIT
"""Series of trainings over levels of sparsity: iterative pruning, random masks, retraining."""
