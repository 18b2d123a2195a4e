# SPDX-License-Identifier: MIT
"""Tar shards of WebDataset: their index and the dataset that reads them."""
