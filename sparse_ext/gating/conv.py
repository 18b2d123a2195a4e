# SPDX-License-Identifier: MIT
"""Gated layers that are one convolution, and how they carry masks on their weights as well."""

from __future__ import annotations

from torch import Tensor, nn

from sparse_ext.gating.method import Gated


class GatedConv2d(Gated, nn.Conv2d):
    """Made from a plain convolution by swapping its class; the weight keeps its key.

    Its forward pass asks `seen_weight()`: with masks that prune in the forward pass
    (`sparse_ext.functional`) that is not the stored weight.
    """

    def seen_weight(self) -> Tensor:
        """(C_out, C_in, kh, kw) as this pass sees it."""
        return self.weight

    def own_convs(self) -> list[nn.Module]:
        """Itself."""
        return [self]
