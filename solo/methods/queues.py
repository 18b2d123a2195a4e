# SPDX-License-Identifier: MIT
"""First-in first-out memory of features, on the device.

The buffers live on the method itself (`queue`, `queue_ptr`, `queue_y`, ...), as solo-learn's
checkpoints have them, and no step reads the pointer on the host.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo.errors import ConfigError
from solo.utils.ranks import concat_all_gather_no_grad, get_rank, get_world_size


class QueueMixin(nn.Module):
    """Adds a ring buffer to a method; `register_queue` in its `__init__`, after `super()`'s."""

    def register_queue(self, shape: tuple[int, ...], slot_dim: int, unit_dim: int, **extra) -> None:
        """Register the buffers of a queue of features and its position.

        Args:
            shape: of `queue`, filled with random unit vectors.
            slot_dim: the dimension that counts the slots.
            unit_dim: the dimension along which vectors have norm 1.
            extra: further per-slot buffers, name (without `queue_`) to the initial value of
                each of its (slots,) int64 entries: `y=-1` makes `queue_y`.
        """
        self._slot_dim = slot_dim
        self.register_buffer("queue", F.normalize(torch.randn(shape), dim=unit_dim))
        for name, value in extra.items():
            filled = torch.full((shape[slot_dim],), value, dtype=torch.long)
            self.register_buffer(f"queue_{name}", filled)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, features: Tensor, **extra: Tensor) -> None:
        """Overwrite the oldest slots by all ranks' `features`.

        Args:
            features: this rank's entries, of `queue`'s shape but for the slots.
            extra: their values for the further buffers, (N,).

        Raises:
            ConfigError: when the slots are not a multiple of the global batch.
        """
        features = concat_all_gather_no_grad(features.detach(), self._slot_dim)
        batch, slots = features.size(self._slot_dim), self.queue.size(self._slot_dim)
        if slots % batch:
            raise ConfigError(
                f"method_kwargs.queue_size={slots} must be a multiple of the batch over all "
                f"devices, {batch}: use {max(1, round(slots / batch)) * batch}"
            )
        where = torch.arange(batch, device=self.queue.device) + self.queue_ptr
        self.queue.index_copy_(self._slot_dim, where, features.to(self.queue.dtype))
        for name, values in extra.items():
            buffer = getattr(self, f"queue_{name}")
            buffer.index_copy_(0, where, concat_all_gather_no_grad(values).to(buffer.dtype))
        self.queue_ptr.add_(batch).remainder_(slots)


class NeighbourQueueMixin(QueueMixin):
    """Queue of (slots, D) rows with labels, and the search for nearest neighbours in it."""

    def register_neighbours(self, slots: int, dim: int, **extra: int) -> None:
        """Make `queue` (slots, dim), `queue_y` (slots,) and `queue_ptr`; `extra` as above."""
        self.register_queue((slots, dim), slot_dim=0, unit_dim=1, y=-1, **extra)

    def dequeue_and_enqueue(self, z: Tensor, y: Tensor) -> None:
        """Replace the oldest rows by all ranks' features `z` (N, D) and labels `y` (N,)."""
        self.enqueue(z, y=y)

    @torch.no_grad()
    def find_nn(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """For rows `z` (N, D): slots (N,) and features (N, D) of the most similar rows."""
        slots = self.similarity(z).argmax(dim=0)
        return slots, self.queue[slots]

    def similarity(self, z: Tensor) -> Tensor:
        """Inner products (slots, N) of the queue with rows `z` (N, D).

        The queue stands left, all views share one product: it is hundreds of megabytes long, and
        reading it is what takes the time.
        """
        return self.queue @ z.T

    def log_neighbour_accuracy(self, slots: Tensor, targets: Tensor) -> None:
        """Log `train_nn_acc`, the fraction of neighbours with the sample's own label.

        Before the queue moves on, and only where there are labels.

        Args:
            slots: of the neighbours, (N,).
            targets: labels of the samples, (N,).
        """
        if self._has_labels(targets):
            self._log_train(train_nn_acc=(self.queue_y[slots] == targets).float().mean())


class LateBuffersMixin(nn.Module):
    """Buffers that exist only once training has started, because their size depends on the data.

    A checkpoint may hold them before the method has them. They then wait aside, out of sight of
    DDP, which would make all ranks' buffers equal. Each rank gets its own part back.

    Attributes:
        LATE_BUFFERS: their names.
        LATE_PER_RANK: whether each rank has its own; otherwise all have the same.
    """

    LATE_BUFFERS: tuple[str, ...] = ()
    LATE_PER_RANK = True

    def start_late_buffer(self, name: str, fresh: Tensor) -> None:
        """Register buffer `name`: what a checkpoint held if it fits, else `fresh`."""
        saved = self.__dict__.setdefault("_late_saved", {}).pop(name, None)
        if saved is not None and saved.shape == fresh.shape:
            fresh = saved.to(fresh)
        self.register_buffer(name, fresh)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add every rank's buffers: the state dict has those of the first rank only."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if self.LATE_PER_RANK and get_world_size() > 1:
            checkpoint["late_buffers"] = {
                name: concat_all_gather_no_grad(getattr(self, name)[None]).cpu()
                for name in self.LATE_BUFFERS
                if hasattr(self, name)
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put this rank's own buffers into the state dict, if the number of ranks is the same."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        for name, buffers in checkpoint.get("late_buffers", {}).items():
            if len(buffers) == get_world_size():
                checkpoint["state_dict"][name] = buffers[get_rank()]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        own = dict(self.named_buffers(recurse=False))
        for name in self.LATE_BUFFERS:
            if f"{prefix}{name}" in state_dict and name not in own:
                saved = state_dict.pop(f"{prefix}{name}")
                self.__dict__.setdefault("_late_saved", {})[name] = saved.clone()
        super()._load_from_state_dict(state_dict, prefix, *args)
