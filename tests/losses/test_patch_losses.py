# SPDX-License-Identifier: MIT
"""iBOT's patch loss, KoLeo and DINO's pairs, written out; DINOv2's balanced targets."""

import math

import pytest
import torch
import torch.nn.functional as F

from solo.losses import DINOLoss, ibot_patch_loss_func, koleo_loss_func
from solo.losses.dino import dino_loss_func, moved_center

pytestmark = pytest.mark.unit


def test_each_image_counts_by_its_own_mean_and_those_without_mask_count_too():
    torch.manual_seed(0)
    student = torch.randn(6, 5).log_softmax(1)
    teacher = torch.randn(6, 5).softmax(1)
    owner = torch.tensor([0, 0, 0, 2, 3, 3])  # images 1 and 4 hide nothing
    ce = [-(teacher[i] * student[i]).sum() for i in range(6)]
    expected = (sum(ce[:3]) / 3 + ce[3] + sum(ce[4:]) / 2) / 5
    torch.testing.assert_close(ibot_patch_loss_func(student, teacher, owner, 5), expected)


def test_no_hidden_patch_gives_a_loss_of_zero_with_a_gradient():
    student = torch.zeros(0, 5, requires_grad=True)
    loss = ibot_patch_loss_func(student, torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), 4)
    loss.backward()
    assert loss.item() == 0


def test_koleo_by_brute_force():
    torch.manual_seed(1)
    x = torch.randn(9, 4, dtype=torch.float64)
    unit = x / x.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(9):
        total += math.log(min(float((unit[i] - unit[j]).norm()) for j in range(9) if j != i) + 1e-8)
    assert float(koleo_loss_func(x)) == pytest.approx(-total / 9)
    assert float(koleo_loss_func(3 * x)) == pytest.approx(-total / 9)


def test_koleo_of_antipodes_and_of_copies_and_of_one():
    assert float(koleo_loss_func(torch.tensor([[1.0, 0], [-5, 0]]))) == pytest.approx(-math.log(2))
    assert float(koleo_loss_func(torch.ones(2, 3))) == pytest.approx(-math.log(1e-8), rel=1e-3)
    assert float(koleo_loss_func(torch.ones(1, 3))) == 0


def test_koleo_gradient_pushes_the_nearest_apart():
    x = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]], requires_grad=True)
    koleo_loss_func(x).backward()
    assert x.grad[0, 1] < 0 < x.grad[1, 1]
    with torch.autocast("cpu", torch.bfloat16):
        assert koleo_loss_func(x).dtype is torch.float32


def test_pairs_with_local_crops():
    """Two teacher views, five student views: every pair but those of the same view."""
    torch.manual_seed(2)
    student, teacher = torch.randn(5 * 3, 4), torch.randn(2 * 3, 4)
    loss = DINOLoss(4, 0.04, 0.07, 0, 3, num_large_crops=5)
    views = (student / 0.1).log_softmax(1).view(5, 3, 4)
    targets = (teacher / 0.07).softmax(1).view(2, 3, 4)
    pairs = [
        -(targets[i, n] * views[j, n]).sum()
        for i in range(2)
        for j in range(5)
        for n in range(3)
        if i != j
    ]
    assert len(pairs) == 8 * 3
    torch.testing.assert_close(loss(student, teacher), sum(pairs) / len(pairs))


def test_pairs_of_one_view_are_left_out():
    p = torch.full((2, 3), 1 / 3)
    expected = torch.tensor(math.log(3))
    torch.testing.assert_close(dino_loss_func([p.log(), p.log()], [p, p]), expected)


def sinkhorn(scores, temperature, iterations):
    q = (scores.double() / temperature).exp().T
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def test_dinov2_targets_are_balanced():
    torch.manual_seed(3)
    scores = F.normalize(torch.randn(12, 6))
    loss = DINOLoss(6, 0.04, 0.07, 0, 3, sinkhorn_iters=3)
    loss.center += 5  # has no say
    got = loss.targets(scores)
    torch.testing.assert_close(got.double(), sinkhorn(scores, 0.07, 3), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.sum(1), torch.ones(12))


def test_centre_moves_by_the_mean_and_stays_without_samples():
    center = torch.tensor([[1.0, 2.0]])
    output = torch.tensor([[3.0, 0.0], [5.0, 4.0]])
    torch.testing.assert_close(moved_center(center, output, 0.9), torch.tensor([[1.3, 2.0]]))
    assert torch.equal(moved_center(center, torch.zeros(0, 2), 0.9), center)
