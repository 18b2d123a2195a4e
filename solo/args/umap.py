# SPDX-License-Identifier: MIT
"""Command line of `main_umap.py`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from solo.args.dataset import check_paths, custom_dataset_args, dataset_args, evaluation_args


def parse_args_umap() -> Namespace:
    """Parse the command line of `main_umap.py`."""
    parser = ArgumentParser(description="UMAP pictures of the features of a checkpoint")
    dataset_args(parser)
    custom_dataset_args(parser)
    evaluation_args(parser)
    args = parser.parse_args()
    check_paths(parser, args)
    return args
