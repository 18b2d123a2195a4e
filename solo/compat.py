# SPDX-License-Identifier: MIT
"""Everything in `solo` that stands on private names or global state of torch and Lightning.

Each has a test in tests/test_compat.py, which fails when the library changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch import distributed as dist

#: elementwise operations on lists of tensors, in few kernels: the same as a loop over the lists
foreach_add = torch._foreach_add
foreach_add_ = torch._foreach_add_
foreach_lerp_ = torch._foreach_lerp_
foreach_mul_ = torch._foreach_mul_
foreach_norm = torch._foreach_norm

#: `g * v / |v|` by rows, with its fused gradient
weight_norm = torch._weight_norm

#: what a pickled tensor names as its makers
TENSOR_MAKERS = {
    f"torch._utils.{maker.__name__}": maker
    for maker in (torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter)
}


@contextmanager
def single_process() -> Iterator[None]:
    """Inside, whoever asks `torch.distributed` for a process group is told that there is none.

    `solo`, Lightning's `all_gather` and synchronised batch norm ask in this way.
    """
    known = dist.is_initialized
    dist.is_initialized = lambda: False
    try:
        yield
    finally:
        dist.is_initialized = known


def loggers_are_due(trainer: Trainer) -> bool:
    """Whether Lightning hands what is logged in this step to the loggers."""
    return bool(trainer._logger_connector.should_update_logs)


def plain_call(module: nn.Module) -> Callable[..., Any]:
    """The call of a module, hooks included, whatever `call_instead` has put in its place."""
    return module._call_impl


def call_instead(module: nn.Module, function: Callable[..., Any]) -> None:
    """Let calls of `module` call `function`, as `nn.Module.compile` does with what it makes."""
    module._compiled_call_impl = function  # type: ignore[assignment]


def set_trainer(module: LightningModule, trainer: Trainer | None) -> None:
    """Let `module` know `trainer`; Lightning's own setter changes all its submodules, too."""
    module._trainer = trainer


def set_progress(trainer: Trainer, step: int, epoch: int) -> None:
    """Let `trainer.global_step` and `trainer.current_epoch` be these."""
    loop = trainer.fit_loop.epoch_loop.automatic_optimization
    loop.optim_progress.optimizer.step.total.completed = step
    current = trainer.fit_loop.epoch_progress.current
    current.processed = current.completed = epoch


def writes(tensor: Tensor) -> int:
    """How often a tensor was written in place; not counted in inference mode."""
    return tensor._version
