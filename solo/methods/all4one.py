# SPDX-License-Identifier: MIT
"""All4One (Estepa et al. 2023): neighbours, attention over neighbours, and feature redundancy."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from solo.errors import ConfigError
from solo.losses.correlation import off_diagonal
from solo.losses.nnclr import nnclr_loss_func
from solo.methods.base import BaseMomentumMethod
from solo.methods.heads import Head, mlp, momentum_pair, spread
from solo.methods.queues import NeighbourQueueMixin
from solo.utils.positional_encodings import PositionalEncodingPermute1D, Summer

NEIGHBOURS = 5
ATTENTION_HEADS = 8


class All4One(NeighbourQueueMixin, BaseMomentumMethod):
    """Queue of momentum projections of view 1, with labels and image indexes."""

    KWARGS = {
        "proj_hidden_dim": int,
        "proj_output_dim": int,
        "pred_hidden_dim": int,
        "temperature": float,
        "queue_size": 65536,
    }
    HEADS = {
        "projector": Head("z", momentum_unit=True),
        "predictor": Head("p", of="z"),
        "predictor2": Head(),
        "transformer_encoder": Head(group={"lr": 0.1}),
    }

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.temperature: float = kwargs.temperature
        self.queue_size: int = kwargs.queue_size
        if out % ATTENTION_HEADS:
            raise ConfigError(
                f"method_kwargs.proj_output_dim={out} must be a multiple of {ATTENTION_HEADS}, the "
                "number of attention heads"
            )
        self.projector, self.momentum_projector = momentum_pair(
            lambda: mlp(self.features_dim, hidden, hidden, out, last_norm="affine")
        )
        self.predictor = mlp(out, kwargs.pred_hidden_dim, out)
        self.predictor2 = mlp(out, kwargs.pred_hidden_dim, out)
        layer = nn.TransformerEncoderLayer(
            out, nhead=ATTENTION_HEADS, dim_feedforward=2 * out, batch_first=True
        )
        self.transformer_encoder = nn.TransformerEncoder(layer, num_layers=3)
        self.pos_enc = Summer(PositionalEncodingPermute1D(NEIGHBOURS))
        self.register_neighbours(self.queue_size, out, index=-1)

    def forward(self, X: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Encode images as `BaseMethod.forward` does; further arguments are ignored."""
        return super().forward(X)

    def dequeue_and_enqueue(self, z: Tensor, y: Tensor, idx: Tensor) -> None:  # type: ignore[override]
        """Replace the oldest rows by all ranks' features `z`, labels `y`, image indexes `idx`."""
        self.enqueue(z, y=y, index=idx)

    @torch.no_grad()
    def find_nn(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # type: ignore[override]
        """For rows `z` (N, D): nearest slot (N,) and, of the five nearest in falling order,
        features (N, 5, D), image indexes (N, 5) and labels (N, 5)."""
        slots = self.similarity(z).topk(NEIGHBOURS, dim=0).indices.T
        return slots[:, 0], self.queue[slots], self.queue_index[slots], self.queue_y[slots]

    def off_diagonal(self, x: Tensor) -> Tensor:
        """The elements of a square matrix outside of its diagonal, flat."""
        return off_diagonal(x).flatten()

    def save_NN(self, img_indexes: Tensor, nn1_idx: Tensor, nn1_lb: Tensor) -> None:
        """Write images, their neighbours and the neighbours' labels to NNIDX/FirstNN (pickle)."""
        Path("NNIDX").mkdir(exist_ok=True)
        with open("NNIDX/FirstNN", "wb") as file:
            pickle.dump([x.cpu().tolist() for x in (img_indexes, nn1_idx, nn1_lb)], file)

    def _attend(self, sequence: Tensor) -> Tensor:
        """First output of the transformer over (N, 5, D)."""
        return self.transformer_encoder(self.pos_enc(sequence))[:, 0]

    def _attention_loss(self, z: Sequence[Tensor], neighbours: Sequence[Tensor]) -> Tensor:
        """Contrast the neighbours' summary with that of (own view, first four neighbours)."""
        own = [
            torch.cat((self.predictor2(view)[:, None], nn), dim=1)[:, :NEIGHBOURS]
            for view, nn in zip(z, neighbours, strict=True)
        ]
        # neighbours first, then the shifted ones: solo-learn's order, for what dropout draws
        (a1, a2), (b1, b2) = ([self._attend(s) for s in part] for part in (neighbours, own))
        return (nnclr_loss_func(a1, b2) + nnclr_loss_func(a2, b1)) / 2

    def _feature_loss(self, z: Sequence[Tensor], momentum_z: Sequence[Tensor]) -> Tensor:
        """Correlation over the batch between the views' features towards the identity."""
        columns = [F.normalize(view, dim=0) for view in (*z, *momentum_z)]
        z1, z2, m1, m2 = columns
        correlations = (m1.T @ z2, m2.T @ z1)
        on = torch.stack([(c.diagonal() - 1).pow(2).mean() for c in correlations]).mean().sqrt()
        off = torch.stack([self.off_diagonal(c).pow(2).mean() for c in correlations]).mean().sqrt()
        return 10 * (on + off) / 2

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Half of each: neighbour contrast, attention contrast, feature redundancy."""
        indexes, targets = batch[0], batch[-1]
        out = super().training_step(batch, batch_idx)
        z, p, momentum_z = out["z"], out["p"], out["momentum_z"]
        slots, neighbours, _, _ = self.find_nn(torch.cat(tuple(momentum_z)))
        nn1, nn2 = neighbours.chunk(2)
        nnclr_loss = (
            nnclr_loss_func(nn1[:, 0], p[1], self.temperature)
            + nnclr_loss_func(nn2[:, 0], p[0], self.temperature)
        ) / 2
        attention_loss = self._attention_loss(z, (nn1, nn2))
        feature_loss = self._feature_loss(z, momentum_z)
        loss = (attention_loss + nnclr_loss + feature_loss) / 2
        self.log_neighbour_accuracy(slots[: len(momentum_z[0])], targets)
        self.dequeue_and_enqueue(momentum_z[0], targets, indexes)
        self._log_train(
            train_comb_loss=loss,
            train_nnclr_loss=nnclr_loss,
            train_att_nnclr_loss=attention_loss,
            train_feature_loss=feature_loss,
            train_z_std=spread(z),
        )
        return loss + out["loss"]
