# SPDX-License-Identifier: MIT
"""Convolutions that compute the kept 8x8 blocks of their weight only, on the CPU.

`plan` turns a mask into lists of blocks; `reference` (torch) and `compiled` (C++, built on first
use) are the same three functions of such a plan; `function` makes them one differentiable
convolution, and `layer` puts it in the place of a masked one.
"""

from sparse_ext.kernels.build import KernelBuildError
from sparse_ext.kernels.function import block_conv2d
from sparse_ext.kernels.layer import (
    BlockConv2d,
    needs_dense_gradients,
    use_block_kernel,
    use_dense_kernel,
)
from sparse_ext.kernels.plan import Plan

__all__ = [
    "BlockConv2d",
    "KernelBuildError",
    "Plan",
    "block_conv2d",
    "needs_dense_gradients",
    "use_block_kernel",
    "use_dense_kernel",
]
