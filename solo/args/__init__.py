# SPDX-License-Identifier: MIT
"""Configuration: schema, checks and the parsers of the four programs (free of torch)."""

from solo.args import dataset, knn, linear, pretrain, umap

__all__ = ["dataset", "knn", "linear", "pretrain", "umap"]
