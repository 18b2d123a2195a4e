# SPDX-License-Identifier: MIT
"""Putting the pruning callback on a module that is already built."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule

from solo.errors import ConfigError
from solo.utils.encoders import encoders_of
from sparse_ext.config.sections import SparseConfig
from sparse_ext.masks.masking import patch
from sparse_ext.training.callback import PruningCallback
from sparse_ext.training.fixed_masks import FixedMasks


class _Callbacks:
    """Stands in for a module's `configure_callbacks`; copies and pickles with the module."""

    def __init__(self, module: LightningModule, callback: PruningCallback) -> None:
        self.module = module
        self.callback = callback

    def __call__(self) -> list[Callback]:
        own = type(self.module).configure_callbacks(self.module)
        own = [own] if isinstance(own, Callback) else own
        # a classifier that is fine-tuned would keep the masks fixed that this callback moves
        return [*(c for c in own if not isinstance(c, FixedMasks)), self.callback]


def attach(module: LightningModule, config: SparseConfig) -> PruningCallback:
    """Patch the encoders of a built module and make it bring its own callback."""
    if not hasattr(module, "backbone"):
        raise ConfigError(
            f"{type(module).__name__} has no attribute 'backbone': that is the encoder which "
            f"becomes sparse ('momentum_backbone' is its EMA copy, if there is one)."
        )
    for encoder in encoders_of(module).values():
        patch(encoder, config)
    callback = callback_of(module, config)
    module.configure_callbacks = _Callbacks(module, callback)  # type: ignore[method-assign]
    return callback


def callback_of(
    module: LightningModule, config: SparseConfig, seed: int | None = None
) -> PruningCallback:
    """The pruning callback of a module, made at the first call."""
    callback = module.__dict__.get("_pruning")
    if callback is None or callback.config != config:
        callback = module.__dict__["_pruning"] = PruningCallback(config, seed)
    return callback
