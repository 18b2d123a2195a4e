# SPDX-License-Identifier: MIT
"""Augmentation of whole batches on tensors: the laws of the per-sample pipelines, much faster.

An image stays a float tensor of whole levels 0..255 from crop to normalisation, rounded wherever
Pillow rounds, so that a view equals Pillow's for the same parameters. Every image of a batch has
parameters of its own, which follow from one row of uniform random numbers. It runs on the CPU and
on a GPU, eager and through `torch.compile`, with the same results: a value of a tensor is looked
at only on the CPU, to leave out work that would change nothing.
"""

from solo.data.views.batched.compiled import CompiledOrPlain
from solo.data.views.batched.view import BatchedView, BatchedViews, build_views

__all__ = ["BatchedView", "BatchedViews", "CompiledOrPlain", "build_views"]
