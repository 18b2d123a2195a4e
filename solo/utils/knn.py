# SPDX-License-Identifier: MIT
"""Weighted k-nearest-neighbour accuracy on frozen features (Wu et al. 2018, section 3.4)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.metric import Metric
from torchmetrics.utilities.data import dim_zero_cat

from solo.monitoring.console import bar


class WeightedKNNClassifier(Metric):
    """Collects train and test features and classifies the test ones by a weighted vote.

    Calling the metric only accumulates; `compute` classifies and then forgets everything.

    Args:
        k: number of neighbours (fewer if there are fewer train samples).
        T: temperature of the cosine weight `exp(similarity / T)`.
        max_distance_matrix_size: elements of the distance matrix held at once.
        distance_fx: `cosine`, or `euclidean` with weight `1 / (distance + epsilon)`.
        epsilon: keeps the euclidean weight finite.
        dist_sync_on_step: see torchmetrics.

    Raises:
        NotImplementedError: for another distance, when computing.
    """

    is_differentiable = False
    train_features: Any
    train_targets: Any
    test_features: Any
    test_targets: Any

    def __init__(
        self,
        k: int = 20,
        T: float = 0.07,
        max_distance_matrix_size: int = 5_000_000,
        distance_fx: str = "cosine",
        epsilon: float = 1e-5,
        dist_sync_on_step: bool = False,
    ):
        super().__init__(dist_sync_on_step=dist_sync_on_step)
        self.k = k
        self.T = T
        self.max_distance_matrix_size = max_distance_matrix_size
        self.distance_fx = distance_fx
        self.epsilon = epsilon
        for split in ("train", "test"):
            for kind in ("features", "targets"):
                self.add_state(f"{split}_{kind}", [], dist_reduce_fx="cat", persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Accumulate (torchmetrics would also compute on every call)."""
        self.update(*args, **kwargs)

    def update(
        self,
        train_features: Tensor | None = None,
        train_targets: Tensor | None = None,
        test_features: Tensor | None = None,
        test_targets: Tensor | None = None,
    ) -> None:
        """Add features and targets of the training or the test split.

        Args:
            train_features: (N, D).
            train_targets: (N,), any integers.
            test_features: (M, D).
            test_targets: (M,).

        Raises:
            AssertionError: if features come without targets, or the lengths differ.
        """
        for split, features, targets in (
            ("train", train_features, train_targets),
            ("test", test_features, test_targets),
        ):
            if features is None and targets is None:
                continue
            if features is None or targets is None or len(features) != len(targets):
                raise AssertionError(
                    f"{split}_features and {split}_targets go together, one target per feature"
                )
            getattr(self, f"{split}_features").append(features.detach())
            getattr(self, f"{split}_targets").append(targets.detach())

    @torch.no_grad()
    def compute(self) -> tuple[float, float]:
        """Accuracy of the vote in percent: (top 1, top 5), or (-1, -1) without data.

        Top 5 counts min(5, k, number of classes) votes.
        """
        states = (self.train_features, self.train_targets, self.test_features, self.test_targets)
        if any(len(state) == 0 for state in states):
            return -1, -1
        train, train_targets, test, test_targets = (_joined(state) for state in states)
        if len(train) == 0 or len(test) == 0:
            return -1, -1
        # classes are positions in the sorted list of labels, so labels need not be 0..C-1
        classes, both = torch.cat([train_targets, test_targets]).unique(return_inverse=True)
        train_classes, test_classes = both.split([len(train), len(test)])
        train, test = self._prepare(train), self._prepare(test)
        top = min(5, self.k, len(train), len(classes))
        hits = torch.zeros(top, device=test.device)
        rows = max(1, self.max_distance_matrix_size // len(train))
        chunks = list(zip(test.split(rows), test_classes.split(rows), strict=True))
        for chunk, wanted in bar(chunks, "nearest neighbours"):
            votes = self._votes(chunk, train, train_classes, len(classes))
            ranking = votes.argsort(dim=1, descending=True, stable=True)[:, :top]
            hits += (ranking == wanted[:, None]).sum(dim=0)
        percent = 100 * hits / len(test)
        return percent[0].item(), percent.sum().item()

    def _prepare(self, features: Tensor) -> Tensor:
        features = features if features.dtype == torch.double else features.float()
        return F.normalize(features, dim=1) if self.distance_fx == "cosine" else features

    def _votes(self, test: Tensor, train: Tensor, train_classes: Tensor, classes: int) -> Tensor:
        """Sum of the weights of each class's members among the neighbours, (M, classes)."""
        if self.distance_fx == "cosine":
            similarity = test @ train.T
        elif self.distance_fx == "euclidean":
            similarity = 1 / (torch.cdist(test, train) + self.epsilon)
        else:
            raise NotImplementedError(
                f"knn distance '{self.distance_fx}': choose 'cosine' or 'euclidean'"
            )
        weight, neighbours = similarity.topk(min(self.k, len(train)), dim=1)
        if self.distance_fx == "cosine":  # relative to the nearest: same ranking, no overflow
            weight = ((weight - weight[:, :1]) / self.T).exp()
        votes = torch.zeros(len(test), classes, device=test.device, dtype=weight.dtype)
        return votes.scatter_add_(1, train_classes[neighbours], weight)

    def _wrap_compute(self, compute: Callable) -> Callable:
        """Forget the samples only after torchmetrics has restored its synchronised state."""
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def compute_and_reset() -> tuple[float, float]:
            result = wrapped()
            self.reset()
            return result

        return compute_and_reset


def _joined(state: Tensor | list[Tensor]) -> Tensor:
    """The samples of a state: parts of this process, or what torchmetrics has joined of all."""
    return state if isinstance(state, Tensor) else dim_zero_cat(list(state))
