# SPDX-License-Identifier: MIT
"""Prune a trained encoder, then let it recover: `bash scripts/compress.sh SOURCE DATA SPARSITY`."""
