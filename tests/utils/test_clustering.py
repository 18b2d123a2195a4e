# SPDX-License-Identifier: MIT
"""k-means against scikit-learn and brute force; Sinkhorn-Knopp against its fixed point."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from scipy.optimize import linprog
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.metrics import adjusted_rand_score

from solo.errors import ConfigError
from solo.utils.kmeans import KMeans
from solo.utils.sinkhorn_knopp import SinkhornKnopp


def blobs(n=60, k=3, dim=8, noise=0.1):
    labels = torch.arange(n) % k
    return F.normalize(torch.eye(dim)[labels] + noise * torch.randn(n, dim), dim=1), labels


@pytest.mark.unit
def test_partition_equals_sklearn():
    x, _ = blobs()
    for seed in range(20):  # random initial rows may hit one blob twice: take one that did not
        torch.manual_seed(seed)
        kmeans = KMeans(1, 0, 1, len(x), 8, [3])
        assignments, centroids = kmeans.cluster_memory(torch.arange(len(x)), x[None])
        if len(assignments.unique()) == 3 and (torch.bincount(assignments[0]) == 20).all():
            break
    reference = SklearnKMeans(3, n_init=10, random_state=0).fit(x.numpy())
    assert adjusted_rand_score(assignments[0], reference.labels_) == 1
    order = assignments[0, [np.flatnonzero(reference.labels_ == c)[0] for c in range(3)]]
    expected = F.normalize(torch.tensor(reference.cluster_centers_), dim=1)
    torch.testing.assert_close(centroids[0][order], expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.unit
def test_iterations_equal_a_loop():
    x = F.normalize(torch.randn(2, 30, 5), dim=2)
    index = torch.randperm(40)[:30]
    torch.manual_seed(4)
    assignments, centroids = KMeans(1, 0, 2, 40, 5, [4, 3, 6], 3).cluster_memory(index, x)
    torch.manual_seed(4)
    for head, k in enumerate([4, 3, 6]):
        memory = x[head % 2]
        c = memory[torch.randperm(30)[:k]].clone()
        for _ in range(3):
            nearest = [max(range(k), key=lambda j: float(row @ c[j])) for row in memory]
            for j in range(k):
                members = [row for row, n in zip(memory, nearest, strict=True) if n == j]
                if members:
                    mean = torch.stack(members).mean(0)
                    c[j] = mean / mean.norm()
        torch.testing.assert_close(centroids[head], c)
        expected = torch.full((40,), -1)
        expected[index] = (memory @ c.T).argmax(1)
        assert torch.equal(assignments[head], expected)


@pytest.mark.unit
def test_rows_never_filled_are_not_assigned():
    x, _ = blobs(12)
    index = torch.tensor([3, 1, 5] + [-1] * 9)
    assignments, _ = KMeans(1, 0, 1, 20, 8, [2]).cluster_memory(index, x[None])
    assert (assignments[0] >= 0).nonzero().flatten().tolist() == [1, 3, 5]


@pytest.mark.unit
def test_too_many_prototypes():
    with pytest.raises(ConfigError, match=r"4 features.*for 5.*num_prototypes"):
        KMeans(1, 0, 1, 4, 8, [5]).cluster_memory(torch.arange(4), torch.randn(1, 4, 8))


@pytest.mark.unit
@pytest.mark.parametrize("shape", [(7,), (3, 4)])
def test_get_indices_sparse(shape):
    data = np.random.default_rng(0).integers(0, 5, shape)
    groups = KMeans.get_indices_sparse(data)
    assert len(groups) == data.max() + 1
    for value, index in enumerate(groups):
        for got, wanted in zip(index, np.nonzero(data == value), strict=True):
            assert np.array_equal(got, wanted)


@pytest.mark.unit
def test_sinkhorn_equals_a_loop_and_its_marginals():
    scores = torch.rand(12, 4, dtype=torch.double)
    q = np.exp(scores.numpy() / 0.05)
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(0, keepdims=True) / 4
        q = q / q.sum(1, keepdims=True) / 12
    np.testing.assert_allclose(SinkhornKnopp()(scores).numpy(), q * 12, rtol=1e-10)
    converged = SinkhornKnopp(num_iters=500)(scores)
    torch.testing.assert_close(converged.sum(1), torch.ones(12, dtype=torch.double))
    torch.testing.assert_close(converged.sum(0), torch.full((4,), 3.0, dtype=torch.double))


@pytest.mark.unit
def test_sinkhorn_tends_to_the_optimal_transport_plan():
    scores = torch.rand(4, 2, dtype=torch.double)
    plan = SinkhornKnopp(num_iters=5000, epsilon=0.002)(scores) / 4
    rows = [np.kron(np.eye(4)[i], np.ones(2)) for i in range(4)]
    columns = [np.kron(np.ones(4), np.eye(2)[j]) for j in range(2)]
    best = linprog(-scores.numpy().ravel(), A_eq=rows + columns, b_eq=[0.25] * 4 + [0.5] * 2)
    assert (plan * scores).sum().item() == pytest.approx(-best.fun, abs=1e-3)


def worker(rank, store, out):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    scores, (x, _) = data()
    q = SinkhornKnopp(world_size=2)(scores[rank * 6 : rank * 6 + 6])
    mine = torch.arange(rank, len(x), 2)  # each process has every other sample
    torch.manual_seed(5)
    kmeans = KMeans(2, rank, 1, len(x), 8, [3]).cluster_memory(mine, x[mine][None])
    torch.save((q, *kmeans), f"{out}/{rank}.pt")
    dist.destroy_process_group()


def data():
    torch.manual_seed(1)
    return torch.rand(12, 4), blobs()


@pytest.mark.dist
def test_two_processes_equal_one(tmp_path):
    mp.spawn(worker, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    scores, (x, _) = data()
    torch.testing.assert_close(torch.cat([r[0] for r in ranks]), SinkhornKnopp()(scores))
    assert torch.equal(ranks[0][1], ranks[1][1])
    assert torch.equal(ranks[0][2][0], ranks[1][2][0])
    centroids, assignments = ranks[0][2][0], ranks[0][1][0]
    assert torch.equal(assignments, (x @ centroids.T).argmax(1))
    assert (assignments >= 0).all()
