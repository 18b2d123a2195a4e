# SPDX-License-Identifier: MIT
"""DeepCluster v2 (Caron et al. 2020, appendix A): learn the clusters of last epoch's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from solo.errors import ConfigError
from solo.losses.deepclusterv2 import deepclusterv2_loss_func
from solo.methods.base import BaseMethod
from solo.methods.heads import Head, mlp
from solo.methods.queues import LateBuffersMixin
from solo.utils.kmeans import KMeans
from solo.utils.ranks import get_rank, get_world_size


class Prototypes(nn.ModuleList):
    """The prototypes of several clusterings, each a linear layer without bias."""

    def forward(self, z: Tensor) -> Tensor:
        """Unit projections (N, D) to scores (clusterings, N, prototypes)."""
        return torch.stack([prototype(z) for prototype in self])


class DeepClusterV2(LateBuffersMixin, BaseMethod):
    """Several heads, each a k-means clustering whose centroids are the head's prototypes.

    The first epoch only fills this rank's memory, `local_memory_embeddings` (large crops, rows,
    D) and the images' `local_memory_index` (rows,), -1 where never filled. The images' indexes
    must be real: with DALI set `dali.encode_indexes_into_labels`.
    """

    KWARGS = {
        "proj_hidden_dim": int,
        "proj_output_dim": int,
        "temperature": 0.1,
        "num_prototypes": [3000, 3000, 3000],
        "kmeans_iters": 10,
    }
    HEADS = {
        "projector": Head("z", unit=True),
        "prototypes": Head("p", of="z", of_unit=True, trained=False),
    }
    HEADS_ON_SMALL_CROPS = True  # as in the authors' code: every crop is told the image's clusters
    LATE_BUFFERS = ("local_memory_index", "local_memory_embeddings")

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        self.proj_output_dim: int = kwargs.proj_output_dim
        self.temperature: float = kwargs.temperature
        self.num_prototypes: list[int] = list(kwargs.num_prototypes)
        if len(set(self.num_prototypes)) != 1:
            raise ConfigError(
                f"method_kwargs.num_prototypes={self.num_prototypes}: every clustering needs the "
                "same number of prototypes, because their scores are stacked"
            )
        self.kmeans_iters: int = kwargs.kmeans_iters
        self.projector = mlp(self.features_dim, kwargs.proj_hidden_dim, self.proj_output_dim)
        self.prototypes = Prototypes(
            nn.Linear(self.proj_output_dim, clusters, bias=False)
            for clusters in self.num_prototypes
        )
        for prototype in self.prototypes:
            prototype.weight.requires_grad = False
            prototype.weight.copy_(F.normalize(prototype.weight, dim=-1))

    def on_train_start(self) -> None:
        """Make the clustering and the memory, now that the data set is known."""
        super().on_train_start()
        loader = self.trainer.train_dataloader
        self.world_size = get_world_size()
        self.dataset_size = _dataset_size(loader)
        self.kmeans = KMeans(
            world_size=self.world_size,
            rank=get_rank(),
            num_large_crops=self.num_large_crops,
            dataset_size=self.dataset_size,
            proj_features_dim=self.proj_output_dim,
            num_prototypes=self.num_prototypes,
            kmeans_iters=self.kmeans_iters,
        )
        rows = len(loader) * self.batch_size
        index = torch.full((rows,), -1, device=self.device)
        self.start_late_buffer("local_memory_index", index)
        memory = torch.randn(self.num_large_crops, rows, self.proj_output_dim, device=self.device)
        self.start_late_buffer("local_memory_embeddings", F.normalize(memory, dim=-1))

    #: the clusters of an epoch are in no checkpoint, so that a run goes on at the next one only
    saved_within_epoch = False

    @torch.no_grad()
    def on_train_epoch_start(self) -> None:
        """Cluster the memory: new assignments and prototypes (none yet in the first epoch)."""
        if self.current_epoch == 0:
            shape = (len(self.num_prototypes), self.dataset_size)
            self.assignments = torch.full(shape, -1, device=self.device)
            return
        self.assignments, centroids = self.kmeans.cluster_memory(
            self.local_memory_index, self.local_memory_embeddings
        )
        for prototype, centroid in zip(self.prototypes, centroids, strict=True):
            prototype.weight.copy_(centroid)

    @torch.no_grad()
    def update_memory_banks(self, idxs: Tensor, z: Sequence[Tensor], batch_idx: int) -> None:
        """Keep the features `z` (views, N, D) of images `idxs` (N,) for the next clustering."""
        start = batch_idx * self.batch_size
        rows = slice(start, start + len(idxs))
        self.local_memory_index[rows] = idxs
        for memory, view in zip(self.local_memory_embeddings, z, strict=False):
            memory[rows] = view.to(memory.dtype)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Cross entropy of every view against its image's clusters."""
        idxs = batch[0]
        out = super().training_step(batch, batch_idx)
        preds = torch.stack([p.unsqueeze(1) for p in out["p"]], dim=1)
        deepcluster_loss = deepclusterv2_loss_func(
            preds, self.assignments[:, idxs], self.temperature
        )
        self.update_memory_banks(idxs, out["z"], batch_idx)
        self._log_train(train_deepcluster_loss=deepcluster_loss)
        return deepcluster_loss + out["loss"]


def _dataset_size(loader: Any) -> int:
    """Images of the whole data set behind a PyTorch or a DALI loader."""
    for source in (loader, getattr(loader, "loaders", None)):
        if hasattr(source, "dataset_size"):
            return source.dataset_size
    return len(loader.dataset)
