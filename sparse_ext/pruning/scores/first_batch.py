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
from torch.nn.attention import SDPBackend, sdpa_kernel

from solo.compat import set_trainer, single_process
from solo.errors import ConfigError
from solo.utils import ranks
from solo.utils.encoders import encoders_of
from sparse_ext.compat import tree_map
from sparse_ext.masks.masked_layers import masked_layers
from sparse_ext.pruning.scores import balanced_batch

Loss = Callable[[], Tensor]


class Probe:
    """The loss of a module as a function of its prunable weights.

    Args:
        module: in training mode, its weights dense.
        trainer: whose run it is in.
        batch: the first training batch, on the module's device.

    Attributes:
        weights: prunable weights of the copy by layer, in the order of the encoder's masks.
        trained: weights of all convolutions and linear layers that train, heads included.
    """

    def __init__(self, module: LightningModule, trainer: Trainer | None, batch: Any) -> None:
        self.module = copy.deepcopy(module)
        set_trainer(self.module, trainer)
        self.trainer = trainer
        self.module.log = self.module.log_dict = _silent  # type: ignore[assignment,method-assign]
        self.batch = batch
        layers = masked_layers(next(iter(encoders_of(self.module).values())))
        self.weights: dict[str, Tensor] = {name: layer.weight for name, layer in layers.items()}
        for weight in self.weights.values():
            weight.requires_grad_(True)
        kinds = (nn.Linear, nn.modules.conv._ConvNd)
        found = (m.weight for m in self.module.modules() if isinstance(m, kinds))
        self.trained = [w for w in found if w.is_leaf and w.requires_grad]
        self.rows = balanced_batch.size(batch)  # of the run's batches
        self._drawn = False
        self._buffers = {n: b.clone() for n, b in self.module.named_buffers()}

    def gradients(self) -> dict[str, Tensor]:
        """Gradient of the loss on the whole batch, averaged over all ranks."""
        with self._isolated():
            grads = torch.autograd.grad(self._loss(self.batch), list(self.weights.values()))
        return dict(zip(self.weights, _averaged(list(grads)), strict=True))

    def parts(self) -> list[Loss]:
        """The losses on both halves of the batch; of drawn samples, on parts as large as batches.

        Raises:
            ConfigError: for a batch of one.
        """
        n = balanced_batch.size(self.batch)
        if n < 2:
            raise ConfigError("GraSP splits a batch in two: set optimizer.batch_size above 1.")
        parts = torch.arange(n).tensor_split(max(2, -(-n // self.rows)) if self._drawn else 2)
        return [lambda p=part: self._loss(balanced_batch.rows(self.batch, p)) for part in parts]  # type: ignore

    def second_order(self, function: Callable[[list[Loss], list[Tensor]], list[Tensor]]) -> Any:
        """What `function` of the losses on parts of the batch and the weights returns, by layer.

        It gets all weights that train; what it returns for the prunable ones counts.

        Every process computes what one process would that has the batches of all, since second
        derivatives do not pass between processes; the first one's results count.
        """
        self.batch = tree_map(_everyones, self.batch) if not self._drawn else self.batch
        # fused attention has no second derivative
        with self._isolated(), single_process(), sdpa_kernel(SDPBackend.MATH):
            found = function(self.parts(), self.trained)
        whose = {id(weight): value for weight, value in zip(self.trained, found, strict=True)}
        products = [whose[id(weight)] for weight in self.weights.values()]
        ranks.share(products)
        return dict(zip(self.weights, products, strict=True))

    def draw(self, head: str, count: int, seed: int) -> None:
        """Go on with `count` samples of each class of the data instead of the first batch.

        Args:
            head: of the module, with as many outputs as there are classes.
            count: samples of each class.
            seed: of the draw, equal on all ranks.

        Raises:
            ConfigError: see `sparse_ext.pruning.scores.balanced_batch.balanced`; or the module
                has no such head.
        """
        seen: list[int] = []
        hook = self._head(head).register_forward_hook(
            lambda _m, _i, out: seen.append(out.shape[-1])
        )
        with self._isolated(), single_process(), torch.no_grad():
            self._loss(self.batch)
        hook.remove()
        loader = None if self.trainer is None else self.trainer.train_dataloader
        with isolate_rng():
            batch = balanced_batch.balanced(loader, count, seen[-1] if seen else 0, seed)
        self.batch = batch if self.trainer is None else self.trainer.strategy.batch_to_device(batch)
        self._drawn = True

    def scale_logits(self, name: str, temperature: float) -> None:
        """Divide what the module's head `name` returns by `temperature`.

        Raises:
            ConfigError: if it has no such head.
        """
        self._head(name).register_forward_hook(lambda _m, _i, output: output / temperature)

    def _head(self, name: str) -> nn.Module:
        head = getattr(self.module, name, None)
        if not isinstance(head, nn.Module):
            raise ConfigError(
                f"{type(self.module).__name__} has no head '{name}' that returns logits: set "
                f"sparse.head to the attribute that does. For a self-supervised loss leave out "
                f"sparse.temperature and sparse.samples_per_class."
            )
        return head

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


def _everyones(leaf: Any) -> Any:
    return ranks.gather_rows(leaf) if balanced_batch.is_rows(leaf) else leaf


def _averaged(tensors: list[Tensor]) -> list[Tensor]:
    """Means over all ranks."""
    if (world := ranks.world_size()) > 1:
        for tensor in tensors:
            shared = tensor.to(ranks.device()).contiguous()
            dist.all_reduce(shared)
            tensor.copy_(shared / world)
    return tensors
