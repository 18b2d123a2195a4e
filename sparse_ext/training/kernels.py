# SPDX-License-Identifier: MIT
"""The sparse kernels in a Lightning run that makes its encoders sparse (`sparse.kernel`)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from solo.errors import ConfigError
from solo.utils.encoders import encoders_of
from sparse_ext.compat import is_compiled
from sparse_ext.config.sections import SparseConfig
from sparse_ext.kernels.element import native
from sparse_ext.kernels.element.swap import (
    element_layers,
    use_element_kernel,
    use_plain_layers,
)
from sparse_ext.kernels.layer import needs_dense_gradients, use_block_kernel, use_dense_kernel

log = logging.getLogger("sparse_ext")

_PRECISIONS = {"block": ("32",), "element": ("32", "bf16-mixed"), "auto": ("32", "bf16-mixed")}


def equip(trainer: Trainer, module: LightningModule, config: SparseConfig, zeros: bool) -> bool:
    """Let the encoders of `module` skip what is pruned, as `config.kernel` says.

    Args:
        trainer: of the run.
        module: what is trained.
        config: of the sparse section.
        zeros: whether the method stores pruned weights as zero.

    Returns:
        whether an encoder has layers with a kernel now.

    Raises:
        ConfigError: a kernel was asked for by name, and this run cannot use it.
        KernelBuildError: the block kernel cannot be compiled here.
    """
    if config.kernel == "dense":
        return False
    encoders = list(encoders_of(module).values())
    if config.kernel != "auto":
        _check(trainer, config, zeros)
        use = use_block_kernel if config.kernel == "block" else _use_element
        for encoder in encoders:
            use(encoder)
        return True
    if trainer.strategy.root_device.type != "cpu" or not native.variant():
        return False
    if why := _dense_because(trainer, encoders, config, zeros):
        log.info("sparse.kernel=auto: all layers compute densely, since %s.", why)
        return False
    found = [_use_auto(encoder) for encoder in encoders]
    return any(found)


def _use_element(encoder: nn.Module) -> None:
    use_element_kernel(encoder, "element", later=True)


def _use_auto(encoder: nn.Module) -> bool:
    try:
        return bool(use_element_kernel(encoder, "auto", later=True))
    except ConfigError:  # no layer of it can use it
        return False


def _dense_because(
    trainer: Trainer, encoders: Sequence[nn.Module], config: SparseConfig, zeros: bool
) -> str:
    """Why `auto` means dense in this run on a CPU; an empty string if it does not."""
    precision = str(trainer.precision)
    if not precision.startswith(_PRECISIONS["auto"]):
        return f"the kernel has no precision={precision}"
    if not zeros:
        return f"{config.name} stores no weights as zero"
    if config.slim_at is not None:
        return "sparse.slim_at removes channels instead"
    if torch.are_deterministic_algorithms_enabled():
        return "deterministic=True excludes choices by measured time"
    if any(is_compiled(encoder) for encoder in encoders):
        return "encoders are compiled (performance.compile)"
    return ""


def _check(trainer: Trainer, config: SparseConfig, zeros: bool) -> None:
    """A kernel that was asked for by name must be of use."""
    kernel = config.kernel
    device, precision = trainer.strategy.root_device.type, str(trainer.precision)
    if device != "cpu" or not precision.startswith(_PRECISIONS[kernel]):
        others = " or ".join("32" if p == "32" else p for p in _PRECISIONS[kernel])
        raise ConfigError(
            f"sparse.kernel={kernel} runs on the CPU in precision {others}, and this run uses "
            f"{device} and precision={precision}: set accelerator=cpu and precision=32, or "
            f"sparse.kernel=dense."
        )
    if not zeros:
        raise ConfigError(
            f"sparse.kernel={kernel} skips weights that are stored as zero, and {config.name} "
            f"stores none: set sparse.kernel=dense."
        )


def unequip(module: LightningModule) -> None:
    """Give encoders the layers back that they had before `equip`."""
    for encoder in encoders_of(module).values():
        use_plain_layers(encoder)
        use_dense_kernel(encoder)


def announce(module: LightningModule, wanted: bool, share: float) -> None:
    """Say before a step whether its pruner looks at the gradients of pruned weights.

    Args:
        module: what is trained.
        wanted: whether it does in this step.
        share: of all steps in which it does.
    """
    for encoder in encoders_of(module).values():
        needs_dense_gradients(encoder, wanted)
        for layer in element_layers(encoder):
            layer.dense_share = share


def layers_in_use(module: LightningModule) -> dict[str, int]:
    """Layers of each encoder, by attribute, that the element-wise kernel computed last."""
    counts = {
        name: sum(layer.used for layer in element_layers(encoder))
        for name, encoder in encoders_of(module).items()
        if element_layers(encoder)
    }
    return counts


NOTABLE, AIM = 0.1, 0.05  # shares of a step's time that changes of masks take


class Stopwatch:
    """Wall clock of training steps, from the batch at hand to the end of the step.

    Attributes:
        steps: counted since the start of training.
        seconds: of all of them.
        updates: changes of masks among them.
        update_seconds: of those changes.
    """

    def __init__(self) -> None:
        self._begun: float | None = None
        self._total, self._steps = 0.0, 0
        self.steps, self.seconds = 0, 0.0
        self.updates, self.update_seconds = 0, 0.0

    def start(self) -> None:
        """A batch is there."""
        self._begun = time.perf_counter()

    def stop(self) -> None:
        """Its step is over."""
        if self._begun is not None:
            step = time.perf_counter() - self._begun
            self._total, self.seconds = self._total + step, self.seconds + step
            self._steps, self.steps = self._steps + 1, self.steps + 1
        self._begun = None

    def update(self, seconds: float) -> None:
        """Masks have changed within the step under way, which took so long."""
        self.updates += 1
        self.update_seconds += seconds

    def advice(self) -> str:
        """A sentence if changes of masks took more than `NOTABLE` of the steps; else nothing."""
        if not self.updates or self.update_seconds <= NOTABLE * self.seconds:
            return ""
        share, one = self.update_seconds / self.seconds, self.update_seconds / self.updates
        step = max((self.seconds - self.update_seconds) / self.steps, 1e-9)
        period = math.ceil(one / step * (1 - AIM) / AIM)
        return (
            f"Changes of masks took {100 * share:.0f}% of the training steps' time: "
            f"{self.updates} in {self.steps} steps, {1e3 * one:.3g} ms each. With "
            f"sparse.update_period={period} they take at most {100 * AIM:.0f}%, as by default in a "
            f"run of {195 * period:,} steps."
        )

    def figures(self) -> dict[str, float]:
        """Mean seconds per step since this was last asked."""
        if not self._steps:
            return {}
        mean = self._total / self._steps
        self._total, self._steps = 0.0, 0
        return {"seconds_per_step": mean}
