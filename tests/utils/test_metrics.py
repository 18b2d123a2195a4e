# SPDX-License-Identifier: MIT
"""Accuracies against brute force."""

import pytest
import torch

from solo.utils.metrics import accuracy_at_k, weighted_mean

pytestmark = pytest.mark.unit


def test_accuracy_equals_a_loop():
    logits, targets = torch.randn(40, 9), torch.randint(0, 9, (40,))
    for k, accuracy in zip((1, 3, 5), accuracy_at_k(logits, targets, (1, 3, 5)), strict=True):
        hits = 0
        for row, target in zip(logits, targets, strict=True):
            hits += int((row > row[target]).sum() < k)
        assert accuracy.shape == (1,)
        assert accuracy.item() == pytest.approx(100 * hits / 40)


def test_fewer_classes_than_k():
    acc1, acc5 = accuracy_at_k(torch.tensor([[0.0, 1], [1, 0]]), torch.tensor([0, 0]))
    assert (acc1.item(), acc5.item()) == (50, 100)


def test_ignored_targets_do_not_count():
    logits = torch.eye(3)
    acc1, _ = accuracy_at_k(logits, torch.tensor([0, -1, 0]), ignore_index=-1)
    assert acc1.item() == 50
    acc1, _ = accuracy_at_k(logits, torch.full((3,), -1), ignore_index=-1)
    assert acc1.item() == 0


def test_weighted_mean():
    outputs = [{"n": 3, "x": torch.tensor([1.0])}, {"n": 1, "x": torch.tensor([5.0])}]
    mean = weighted_mean(outputs, "x", "n")
    assert mean.shape == ()
    assert mean.item() == 2.0
    assert weighted_mean([{"n": 2, "x": 1.0}, {"n": 2, "x": 2.0}], "x", "n") == 1.5
