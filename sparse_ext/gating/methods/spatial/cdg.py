# SPDX-License-Identifier: MIT
"""CDG, contrastive dual gating (Meng et al. 2022): two branches with disjoint base paths.

Branch a1 has the diagonal base path, b(a) = a, branch a2 the inverse one, b(a) = G - 1 - a: what
one branch always computes, the other computes only where it pays. Evaluation takes a1.
"""

from __future__ import annotations

from solo.utils.views import View
from sparse_ext.gating.methods.spatial.cgnet import CGNet
from sparse_ext.gating.methods.spatial.paths import Pattern, diagonal, second_path


class CDG(CGNet):
    """CGNet's convolutions, losses and figures, with a base path and statistics per branch."""

    gated = ("a1", "a2")

    def branch_of(self, view: View, epoch: int) -> str:
        """By encoder (MoCo: queries a1, keys a2) or by view (SimCLR, SimSiam: 1st a1, 2nd a2)."""
        if self.config.split == "encoder":
            return "a1" if view.encoder == "online" else "a2"
        return "a2" if view.index % 2 else "a1"

    def patterns(self) -> dict[str, Pattern]:
        """Diagonal and, with the overlap that is asked for, the second base path."""
        groups = self.config.groups
        return {"a1": diagonal(groups), "a2": second_path(groups, self.config.overlap)}
