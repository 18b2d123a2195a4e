# SPDX-License-Identifier: MIT
"""Putting the pruning callback on a module that is already built."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule

from solo.errors import ConfigError, did_you_mean
from solo.utils.encoders import encoders_of, name_encoders
from sparse_ext.config.sections import SparseConfig
from sparse_ext.masks.masking import patch
from sparse_ext.training.callback import PruningCallback
from sparse_ext.training.fixed_masks import FixedMasks
from sparse_ext.training.teachers import find_teacher


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


def attach(
    module: LightningModule,
    config: SparseConfig,
    online: str = "backbone",
    momentum: str | None = None,
) -> PruningCallback:
    """Patch the encoders of a built module and make it bring its own callback.

    Args:
        module: what is to train.
        config: the method's.
        online: dotted name of the encoder that trains.
        momentum: that of its EMA copy; None = looked for.

    Raises:
        ConfigError: there is no such encoder, or several could be the EMA copy.
    """
    named = dict(module.named_modules())
    for key, name in {"online": online, "momentum": momentum}.items():
        if name is not None and name not in named:
            hint = did_you_mean(name, (n for n in named if n))
            raise ConfigError(
                f"{type(module).__name__} has no attribute '{name}': that is the encoder which "
                f"becomes sparse ('momentum_backbone' is its EMA copy, if there is one). Name "
                f"yours by sparsify(module, config, {key}=...). {hint}"
            )
    if (online, momentum) != ("backbone", None) or "momentum_backbone" not in named:
        name_encoders(module, online, momentum or find_teacher(module, online))
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
