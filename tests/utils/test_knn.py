# SPDX-License-Identifier: MIT
"""The kNN metric against scikit-learn."""

import copy

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from solo.utils.knn import WeightedKNNClassifier

pytestmark = pytest.mark.unit


def clusters(n, classes, dim=6, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centers = np.random.default_rng(99).normal(size=(classes, dim))
    features = centers[labels] + noise * rng.normal(size=(n, dim))
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels)


def sklearn_accuracy(train, y, test, t, k, weights, unit):
    train, test = (f / f.norm(dim=1, keepdim=True) if unit else f for f in (train, test))
    model = KNeighborsClassifier(k, weights=weights, algorithm="brute").fit(train, y)
    ranking = model.classes_[np.argsort(-model.predict_proba(test), axis=1, kind="stable")]
    hits = ranking == t.numpy()[:, None]
    return 100 * hits[:, 0].mean(), 100 * hits[:, :5].any(1).mean()


@pytest.mark.parametrize("k", [1, 7, 20])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("matrix", [5_000_000, 1000])
def test_matches_sklearn(k, distance, matrix):
    train, y = clusters(200, 8)
    test, t = clusters(77, 8, seed=1)
    metric = WeightedKNNClassifier(k, 0.1, max_distance_matrix_size=matrix, distance_fx=distance)
    for part in range(2):
        rows = slice(part * 100, part * 100 + 100)
        assert metric(train_features=train[rows], train_targets=y[rows]) is None
    metric(test_features=test, test_targets=t)
    if distance == "cosine":
        # squared distance of unit vectors is 2 - 2 cos
        weights = lambda d: np.exp((1 - d**2 / 2) / 0.1)  # noqa: E731
    else:
        weights = lambda d: 1 / (d + 1e-5)  # noqa: E731
    expected = sklearn_accuracy(train, y, test, t, k, weights, unit=distance == "cosine")
    acc1, acc5 = metric.compute()
    assert acc1 == pytest.approx(expected[0], abs=1e-4)
    if k > 7:  # below, classes without a vote rank arbitrarily among the five
        assert acc5 == pytest.approx(expected[1], abs=1e-4)
    assert type(acc1) is float
    assert 20 < acc1 < 100


def test_labels_may_be_any_integers():
    train, y = clusters(60, 4)
    test, t = clusters(30, 4, seed=1)
    results = []
    for labels in (torch.arange(4), torch.tensor([-7, 1000, 3, 12])):
        metric = WeightedKNNClassifier(5)
        metric(train, labels[y], test, labels[t])
        results.append(metric.compute())
    # labels change only the order of classes without votes, which top 1 never picks
    assert results[0][0] == results[1][0] > 50


def test_train_has_classes_that_the_test_split_lacks():
    train = torch.eye(4)
    metric = WeightedKNNClassifier(1)
    metric(train, torch.arange(4), train[2:], torch.tensor([2, 3]))
    assert metric.compute() == (100.0, 100.0)


def test_fewer_samples_and_classes_than_five():
    metric = WeightedKNNClassifier(k=20)
    metric(torch.eye(3), torch.tensor([0, 1, 0]), torch.eye(3), torch.tensor([1, 1, 0]))
    acc1, acc5 = metric.compute()
    assert acc1 == pytest.approx(200 / 3, abs=1e-4)
    assert acc5 == 100


def test_forgets_after_compute_and_says_when_empty():
    metric = copy.deepcopy(WeightedKNNClassifier(1))
    metric(torch.eye(2), torch.arange(2), torch.eye(2), torch.arange(2))
    assert metric.compute() == (100.0, 100.0)
    with pytest.warns(UserWarning, match="before the"):
        assert metric.compute() == (-1, -1)
    metric(train_features=torch.eye(2), train_targets=torch.arange(2))
    assert metric.compute() == (-1, -1)
    assert metric.state_dict() == {}


def test_half_precision_features_and_a_tiny_temperature():
    metric = WeightedKNNClassifier(2, T=1e-3)
    metric(torch.eye(2).half(), torch.arange(2), torch.eye(2).half(), torch.arange(2))
    assert metric.compute()[0] == 100


def test_bad_input():
    with pytest.raises(AssertionError, match="train_features and train_targets go together"):
        WeightedKNNClassifier()(train_features=torch.eye(2))
    metric = WeightedKNNClassifier(1, distance_fx="manhattan")
    metric(torch.eye(2), torch.arange(2), torch.eye(2), torch.arange(2))
    with pytest.raises(NotImplementedError, match=r"manhattan.*'cosine' or 'euclidean'"):
        metric.compute()
