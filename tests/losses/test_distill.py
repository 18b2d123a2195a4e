# SPDX-License-Identifier: MIT
"""Distances of features against numpy."""

import numpy as np
import pytest
import torch

from solo.errors import ConfigError
from solo.losses.distill import distill_loss_func

pytestmark = pytest.mark.unit


def test_cosine_by_numpy():
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    x, y = a.numpy(), b.numpy()
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert distill_loss_func(a, b).item() == pytest.approx(1 - cosines.mean(), rel=1e-5)


def test_smooth_l1_by_numpy():
    a, b = 2 * torch.randn(5, 7), torch.randn(5, 7)
    difference = np.abs((a - b).numpy())
    huber = np.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    expected = huber / (b.numpy() ** 2).mean()
    assert distill_loss_func(a, b, "smooth_l1").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "smooth_l1"])
def test_a_copy_has_no_distance_and_no_gradient(kind):
    student = torch.randn(4, 6, requires_grad=True)
    loss = distill_loss_func(student, student.detach().clone(), kind)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6
    teacher = torch.randn(4, 6, requires_grad=True)
    distill_loss_func(student, teacher, kind).backward()
    assert teacher.grad is None


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="'l2' is unknown"):
        distill_loss_func(torch.ones(2, 3), torch.ones(2, 3), "l2")
    with pytest.raises(ConfigError, match=r"student's are \(2, 3\), the teacher's \(2, 4\)"):
        distill_loss_func(torch.ones(2, 3), torch.ones(2, 4))
