# SPDX-License-Identifier: MIT
"""ASP (NVIDIA's Automatic SParsity; Mishra et al., "Accelerating Sparse Deep Neural Networks").

A trained dense network keeps, along its input channels, the N largest of every M weights; the masks
stay fixed while it is trained once more with the same recipe. Layers whose channels tensor cores
could not take stay dense.
"""

from __future__ import annotations

from typing import Any

from sparse_ext.pruning.constant_sparsity import Constant
from sparse_ext.pruning.dense_start import load_dense


class ASP(Constant):
    """All groups become N:M before the first step, by the magnitude of the loaded weights."""

    def enter(self, module: Any, fresh: bool) -> None:
        """Take over the trained weights that the run starts from."""
        if fresh:
            load_dense(module, self.config.dense_checkpoint, "asp")
