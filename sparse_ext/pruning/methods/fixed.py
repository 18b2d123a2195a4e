# SPDX-License-Identifier: MIT
"""Masks that stay as they came: training on with an encoder that was sparse before.

The run starts from a sparse encoder (`init_from`), whose masks neither grow nor shrink: recovery
after pruning without training, or continued pretraining of a sparse run's result.
"""

from __future__ import annotations

from solo.errors import ConfigError
from sparse_ext.pruning.pruner import Pruner


class Fixed(Pruner):
    """The pruner that changes no mask."""

    def set_up(self) -> None:
        """The present sparsity is the first and the last one.

        Raises:
            ConfigError: no weight is pruned.
        """
        if all(encoder.masks.nnz == encoder.masks.n for encoder in self.encoders):
            raise ConfigError(
                "sparse.name=fixed keeps the masks of the encoder that the run starts from, and "
                "this one is dense: set init_from to a sparse run, or choose a method that prunes."
            )
        self.begins = [self.sparsity_of(encoder) for encoder in self.encoders]
        self.finals = list(self.begins)
