# SPDX-License-Identifier: MIT
"""RigL-ITOP (Liu et al., "Do We Actually Need Dense Over-Parameterization?", 2021).

RigL with larger and rarer changes until the end of the run and no skipped steps, so that each
weight which was tried had time to grow.
"""

from __future__ import annotations

from sparse_ext.pruning.methods.rigl import RigL


class RigLITOP(RigL):
    """RigL with the defaults of In-Time Over-Parameterization (`RigLITOPConfig`)."""
