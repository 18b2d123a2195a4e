# SPDX-License-Identifier: MIT
"""What Lightning and torch say that does not apply to our runs, or that our own lines say."""

from __future__ import annotations

import logging
import warnings

_WARNINGS = (
    ".*isinstance.treespec, LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*does not have many workers.*",
    # images without labels
    ".*You defined a `validation_step` but have no `val_dataloader`.*",
    ".*DataLoader will create .* worker processes in total.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    # a method's own hooks before and after the transfer are what is wanted with a data module
    ".*You have overridden `on_.*_batch_transfer` in `LightningModule`.*",
    # figures of extensions, the same on all ranks: sparse/online_sparsity and the like
    ".*self.log.'[a-z_]+/.*sync_dist.*",
)
_LINES = (
    "GPU available:",
    "TPU available:",
    "HPU available:",
    "Loading `train_dataloader` to estimate",
    "`Trainer.fit` stopped:",
    "`Trainer(",
)


def quiet() -> None:
    """Leave out Lightning's advertising, and advice that does not apply; twice changes nothing."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_matters)


def _matters(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return "Tip:" not in text and not text.startswith(_LINES)
