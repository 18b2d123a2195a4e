# SPDX-License-Identifier: MIT
"""Spherical k-means over features that are spread over processes (DeepCluster v2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from solo.errors import ConfigError
from solo.utils.ranks import concat_all_gather_no_grad


class KMeans:
    """Clusters a memory of features once per head.

    Args:
        world_size: number of processes.
        rank: rank of this process; the first one picks the initial centroids.
        num_large_crops: crops per sample in the memory; head h uses crop h modulo this.
        dataset_size: number of samples of the whole dataset.
        proj_features_dim: dimension D of the features.
        num_prototypes: number of clusters of each head.
        kmeans_iters: Lloyd iterations.
    """

    def __init__(
        self,
        world_size: int,
        rank: int,
        num_large_crops: int,
        dataset_size: int,
        proj_features_dim: int,
        num_prototypes: Sequence[int],
        kmeans_iters: int = 10,
    ):
        self.world_size = world_size
        self.rank = rank
        self.num_large_crops = num_large_crops
        self.dataset_size = dataset_size
        self.proj_features_dim = proj_features_dim
        self.num_prototypes = num_prototypes
        self.kmeans_iters = kmeans_iters

    @staticmethod
    def get_indices_sparse(data: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        """For each value 0..max of `data`, the indices (as by `np.nonzero`) where it occurs."""
        order = np.argsort(data, axis=None, kind="stable")
        ends = np.cumsum(np.bincount(data.ravel()))[:-1]
        return [np.unravel_index(flat, data.shape) for flat in np.split(order, ends)]

    @torch.no_grad()
    def cluster_memory(
        self, local_memory_index: Tensor, local_memory_embeddings: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Run k-means over the memory of features for every head.

        Args:
            local_memory_index: dataset index of each row, (n,), -1 for a row never filled.
            local_memory_embeddings: l2-normalised features, (num_large_crops, n, D).

        Returns:
            assignments: long (heads, dataset_size), -1 for samples in no process's memory.
            centroids: one (K, D) per head, unit rows.

        Raises:
            ConfigError: if a head has more prototypes than the memory has rows.
        """
        device = local_memory_embeddings.device
        shape = (len(self.num_prototypes), self.dataset_size)
        assignments = torch.full(shape, -1, dtype=torch.long, device=device)
        indexes = self._gather(local_memory_index.to(device))
        known = indexes >= 0
        all_centroids = []
        for head, clusters in enumerate(self.num_prototypes):
            memory = local_memory_embeddings[head % self.num_large_crops]
            centroids = self._initial_centroids(memory, clusters)
            for _ in range(self.kmeans_iters):
                centroids = self._update(memory, centroids)
            nearest = self._gather((memory @ centroids.T).argmax(dim=1))
            assignments[head, indexes[known]] = nearest[known]
            all_centroids.append(centroids)
        return assignments, all_centroids

    def _initial_centroids(self, memory: Tensor, clusters: int) -> Tensor:
        """Random rows of the first process's memory, (K, D), the same on all processes."""
        if len(memory) < clusters:
            raise ConfigError(
                f"k-means needs at least as many features as clusters, got {len(memory)} features "
                f"per process for {clusters}; reduce method_kwargs.num_prototypes."
            )
        rows = torch.randperm(len(memory))[:clusters].to(memory.device)
        centroids = memory[rows].contiguous()
        if self._distributed:
            dist.broadcast(centroids, 0)
        return centroids

    def _update(self, memory: Tensor, centroids: Tensor) -> Tensor:
        """One Lloyd iteration; a cluster without members keeps its centroid."""
        nearest = (memory @ centroids.T).argmax(dim=1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, memory)
        counts = torch.bincount(nearest, minlength=len(centroids))
        if self._distributed:
            dist.all_reduce(sums)
            dist.all_reduce(counts)
        means = torch.where((counts > 0)[:, None], sums, centroids)
        return F.normalize(means, dim=1)

    def _gather(self, x: Tensor) -> Tensor:
        return concat_all_gather_no_grad(x) if self._distributed else x

    @property
    def _distributed(self) -> bool:
        return dist.is_available() and dist.is_initialized()
