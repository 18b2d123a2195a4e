# SPDX-License-Identifier: MIT
"""Two encoders behind one: a gated and a dense one that share nothing (Dual, Table 4)."""

from __future__ import annotations

from torch import Tensor, nn

from solo.backbones import features_dim


class TwoEncoders(nn.Module):
    """Sends every pass to the encoder that is called like its branch.

    Args:
        gated: the encoder with gates.
        dense: one without, of the same architecture.
    """

    def __init__(self, gated: nn.Module, dense: nn.Module) -> None:
        super().__init__()
        self.gated = gated
        self.dense = dense
        self.num_features = features_dim(gated)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to features (N, F)."""
        branch: str = self.gating.context.branch  # type: ignore[union-attr, assignment]
        return getattr(self, branch)(x)
