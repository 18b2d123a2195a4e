# SPDX-License-Identifier: MIT
"""The block kernel in a Lightning run that makes its encoders sparse (`sparse.kernel=block`)."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from solo.errors import ConfigError
from solo.utils.encoders import encoders_of
from sparse_ext.kernels.layer import needs_dense_gradients, use_block_kernel


def equip(trainer: Trainer, module: LightningModule) -> None:
    """Let the encoders of `module` skip their pruned blocks.

    Raises:
        ConfigError: the run is not on the CPU in float32, or no layer could use the kernel.
        KernelBuildError: it cannot be compiled here.
    """
    device, precision = trainer.strategy.root_device.type, str(trainer.precision)
    if device != "cpu" or not precision.startswith("32"):
        raise ConfigError(
            f"sparse.kernel=block runs on the CPU in float32, and this run uses {device} and "
            f"precision={precision}: set accelerator=cpu and precision=32, or sparse.kernel=dense."
        )
    for encoder in encoders_of(module).values():
        use_block_kernel(encoder)


def announce(module: LightningModule, wanted: bool) -> None:
    """Say before a step whether its pruner looks at the gradients of pruned weights."""
    for encoder in encoders_of(module).values():
        needs_dense_gradients(encoder, wanted)
