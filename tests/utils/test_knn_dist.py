# SPDX-License-Identifier: MIT
"""Two processes with half of the samples each vote as one process with all of them."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from solo.quality.probes import _features
from solo.utils.knn import WeightedKNNClassifier

pytestmark = pytest.mark.dist
WORLD, N = 2, 20


def samples():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(4).repeat(N)
    features = torch.randn(4 * N, 6, generator=generator) + targets[:, None]
    return features, targets


def accuracies(rows):
    features, targets = (part[rows] for part in samples())
    knn = WeightedKNNClassifier(k=5, distance_fx="cosine")
    half = len(features) // 2
    knn(train_features=features[:half], train_targets=targets[:half])
    knn(test_features=features[half:], test_targets=targets[half:])
    return knn.compute()


def worker(rank, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    features, targets = samples()
    mine = slice(rank, None, WORLD)
    uneven = slice(0, 33) if rank == 0 else slice(33, None)
    loader = [(features[uneven], targets[uneven])]
    gathered = _features(torch.nn.Identity(), loader, torch.device("cpu"))
    torch.save((accuracies(mine), gathered), f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_vote_as_one(tmp_path):
    mp.spawn(worker, (str(tmp_path / "store"), str(tmp_path)), nprocs=WORLD)
    features, targets = samples()
    # the processes' halves, in the order in which they are joined
    train = torch.cat([torch.arange(r, 4 * N, 2)[:N] for r in range(2)])
    test = torch.cat([torch.arange(r, 4 * N, 2)[N:] for r in range(2)])
    expected = accuracies(torch.cat([train, test]))
    for rank in range(WORLD):
        found, (rows, labels) = torch.load(tmp_path / f"{rank}.pt")
        assert found == pytest.approx(expected)
        assert torch.equal(rows, features)  # probes gather unlike numbers of rows
        assert torch.equal(labels, targets)
