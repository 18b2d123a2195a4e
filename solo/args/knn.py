# SPDX-License-Identifier: MIT
"""Command line of `main_knn.py`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from solo.args.dataset import (
    at_least,
    check_paths,
    custom_dataset_args,
    dataset_args,
    evaluation_args,
)


def parse_args_knn(argv: Sequence[str] | None = None) -> Namespace:
    """Parse `argv` (None = `sys.argv`); lists such as `k` are tried in all combinations."""
    parser = ArgumentParser(description="k-nearest-neighbour evaluation of a checkpoint")
    dataset_args(parser)
    custom_dataset_args(parser)
    evaluation_args(parser)
    parser.add_argument("--k", type=at_least(int, 1), nargs="+", default=[20])
    parser.add_argument("--temperature", type=at_least(float, 1e-6), nargs="+", default=[0.07])
    parser.add_argument(
        "--distance_function", nargs="+", default=["cosine"], choices=["cosine", "euclidean"]
    )
    parser.add_argument(
        "--feature_type", nargs="+", default=["backbone"], choices=["backbone", "projector"]
    )
    args = parser.parse_args(argv)
    check_paths(parser, args)
    return args
