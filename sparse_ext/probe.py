# SPDX-License-Identifier: MIT
"""A method's own training loss on its own first batch, without a trace left in the module.

SNIP and GraSP score weights by the derivatives of the loss at initialisation. The loss is whatever
the module's `training_step` returns, self-supervised or not; it is evaluated on a copy, so batch
norm statistics, queues, logs and random state of the run stay as they were.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils._pytree import tree_leaves, tree_map

from solo.errors import ConfigError
from sparse_ext import distributed
from sparse_ext.encoder import masked_layers

Loss = Callable[[], Tensor]


class Probe:
    """The loss of a module as a function of its prunable weights.

    Args:
        module: in training mode, its weights dense.
        trainer: whose run it is in.
        batch: the first training batch, on the module's device.

    Attributes:
        weights: prunable weights of the copy by layer, in the order of the encoder's masks.
    """

    def __init__(self, module: LightningModule, trainer: Trainer | None, batch: Any) -> None:
        self.module = copy.deepcopy(module)
        self.module._trainer = trainer
        self.module.log = self.module.log_dict = _silent  # type: ignore[assignment,method-assign]
        self.batch = batch
        layers = masked_layers(self.module.backbone)  # type: ignore[arg-type]
        self.weights: dict[str, Tensor] = {name: layer.weight for name, layer in layers.items()}
        for weight in self.weights.values():
            weight.requires_grad_(True)
        self._buffers = {n: b.clone() for n, b in self.module.named_buffers()}

    def gradients(self) -> dict[str, Tensor]:
        """Gradient of the loss on the whole batch, averaged over all ranks."""
        with self._isolated():
            grads = torch.autograd.grad(self._loss(self.batch), list(self.weights.values()))
        return dict(zip(self.weights, _averaged(list(grads)), strict=True))

    def halves(self) -> list[Loss]:
        """The losses on both halves of the batch, for `second_order`."""
        n = min(len(leaf) for leaf in tree_leaves(self.batch) if _is_rows(leaf))
        if n < 2:
            raise ConfigError("GraSP splits a batch in two: set optimizer.batch_size above 1.")
        parts = (slice(n // 2), slice(n // 2, n))
        return [lambda p=part: self._loss(_rows(self.batch, p)) for part in parts]  # type: ignore

    def second_order(self, function: Callable[[list[Loss], list[Tensor]], list[Tensor]]) -> Any:
        """What `function` of the losses and the weights returns, by layer, averaged over ranks."""
        with self._isolated():
            found = function(self.halves(), list(self.weights.values()))
        return dict(zip(self.weights, _averaged(found), strict=True))

    def scale_logits(self, name: str, temperature: float) -> None:
        """Divide what the module's head `name` returns by `temperature`.

        Raises:
            ConfigError: if it has no such head.
        """
        head = getattr(self.module, name, None)
        if not isinstance(head, nn.Module):
            raise ConfigError(
                f"sparse.temperature={temperature} divides the logits of the module's head "
                f"'{name}', but {type(self.module).__name__} has none: set sparse.head to the "
                f"attribute that returns the logits, or sparse.temperature=1."
            )
        head.register_forward_hook(lambda _m, _i, output: output / temperature)

    def _loss(self, batch: Any) -> Tensor:
        with torch.no_grad():  # every evaluation sees the same queues and statistics
            for name, buffer in self.module.named_buffers():
                buffer.copy_(self._buffers[name])
        out = self.module.training_step(batch, 0)
        loss = out["loss"] if isinstance(out, dict) else out
        if not isinstance(loss, Tensor):
            raise ConfigError(
                f"{type(self.module).__name__}.training_step returned no loss for its first batch, "
                f"so nothing tells which weights matter. Use +sparse=random or oneshot."
            )
        return loss

    @contextmanager
    def _isolated(self) -> Iterator[None]:
        with isolate_rng(), _eager(), torch.enable_grad():
            yield


def _silent(*_: Any, **__: Any) -> None:
    """Scoring is no training step: nothing is logged."""


def _eager() -> Any:
    """Compiled graphs have no second derivative."""
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else stance("force_eager")


def _is_rows(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def _rows(batch: Any, part: slice) -> Any:
    return tree_map(lambda leaf: leaf[part] if _is_rows(leaf) else leaf, batch)


def _averaged(tensors: list[Tensor]) -> list[Tensor]:
    """Means over all ranks."""
    if (world := distributed.world_size()) > 1:
        for tensor in tensors:
            shared = tensor.to(distributed.device()).contiguous()
            dist.all_reduce(shared)
            tensor.copy_(shared / world)
    return tensors
