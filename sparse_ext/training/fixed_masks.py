# SPDX-License-Identifier: MIT
"""Training with masks that do not change: fine-tuning of a sparse encoder (SyncCP, Table 8)."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from sparse_ext.kernels import needs_dense_gradients
from sparse_ext.masks.encoder import Encoder, check_stored
from sparse_ext.training.run_checks import check_callbacks, check_strategy, only_optimizer


class FixedMasks(Callback):
    """Pruned weights of `module.backbone` get no gradient and stay zero, with their state.

    The same places in the optimizer step as during pruning: gradients are masked before they are
    clipped, weights and optimizer state right after the step.
    """

    def __init__(self) -> None:
        self._hook: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse ways of training that masks cannot follow."""
        if stage == "fit":
            check_strategy(trainer, pl_module)
            check_callbacks(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook into the optimizer."""
        optimizer = only_optimizer(trainer)
        encoder = Encoder(pl_module.backbone)  # type: ignore[arg-type]
        encoder.project(optimizer)
        needs_dense_gradients(pl_module.backbone, False)  # type: ignore[arg-type]
        self._hook = optimizer.register_step_post_hook(lambda o, *_: encoder.project(o))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Gradients of pruned weights become zero."""
        Encoder(pl_module.backbone).mask_gradients()  # type: ignore[arg-type]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pruned weights are still zero.

        Raises:
            InvariantError: something has written to weights under the masks.
        """
        check_stored([Encoder(pl_module.backbone)])  # type: ignore[arg-type]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizer as it was."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
