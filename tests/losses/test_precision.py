# SPDX-License-Identifier: MIT
"""Losses under autocast to bfloat16 are those of float64 on the same numbers."""

import pytest
import torch

from solo.losses.barlow import barlow_loss_func
from solo.losses.byol import byol_loss_func
from solo.losses.deepclusterv2 import deepclusterv2_loss_func
from solo.losses.dino import DINOLoss
from solo.losses.mocov2plus import mocov2plus_loss_func
from solo.losses.mocov3 import mocov3_loss_func
from solo.losses.nnclr import nnclr_loss_func
from solo.losses.precision import in_float32
from solo.losses.ressl import ressl_loss_func
from solo.losses.simclr import simclr_loss_func
from solo.losses.simsiam import simsiam_loss_func
from solo.losses.swav import swav_loss_func
from solo.losses.vibcreg import vibcreg_loss_func
from solo.losses.vicreg import vicreg_loss_func
from solo.losses.wmse import wmse_loss_func

pytestmark = pytest.mark.unit
N, D = 16, 12
QUEUE = torch.nn.functional.normalize(torch.randn(D, 32), dim=0).bfloat16()

LOSSES = {
    "barlow": barlow_loss_func,
    "byol": byol_loss_func,
    "mocov2plus": lambda a, b: mocov2plus_loss_func(a, b, QUEUE.to(a.dtype)),
    "mocov3": mocov3_loss_func,
    "nnclr": nnclr_loss_func,
    "ressl": lambda a, b: ressl_loss_func(a, b, QUEUE.T.to(a.dtype)),
    "simclr": lambda a, b: simclr_loss_func(torch.cat([a, b]), torch.arange(N).repeat(2)),
    "simsiam": simsiam_loss_func,
    "swav": lambda a, b: swav_loss_func([a, b], [b.softmax(dim=1), a.softmax(dim=1)]),
    "vibcreg": vibcreg_loss_func,
    "vicreg": vicreg_loss_func,
    "wmse": wmse_loss_func,
}


def pair(seed):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(N, D, generator=generator)
    second = first + 0.1 * torch.randn(N, D, generator=generator)
    return first.bfloat16(), second.bfloat16()


@pytest.mark.parametrize("name", LOSSES)
def test_under_autocast(name):
    a, b = pair(1)
    with torch.autocast("cpu", torch.bfloat16):
        found = LOSSES[name](a, b)
    assert found.dtype == torch.float32
    expected = LOSSES[name](a.float(), b.float())  # assignments of SwAV are given in bfloat16
    assert float(found) == pytest.approx(float(expected), rel=1e-2 if name == "swav" else 1e-4)


def test_byol_is_that_of_float64():
    a, b = pair(2)
    with torch.autocast("cpu", torch.bfloat16):
        found = byol_loss_func(a, b)
    assert float(found) == pytest.approx(float(byol_loss_func(a.double(), b.double())), rel=1e-4)


def test_deepcluster_and_dino():
    preds = torch.randn(2, 2, N, 5).bfloat16()
    assignments = torch.randint(0, 5, (2, N))
    with torch.autocast("cpu", torch.bfloat16):
        found = deepclusterv2_loss_func(preds, assignments)
        assert found.dtype == torch.float32
    expected = deepclusterv2_loss_func(preds.double(), assignments)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    loss = DINOLoss(
        num_prototypes=8,
        warmup_teacher_temp=0.04,
        teacher_temp=0.04,
        warmup_teacher_temp_epochs=0,
        num_epochs=10,
    )
    student, teacher = (torch.randn(2 * N, 8).bfloat16() for _ in range(2))
    expected = loss(student.float(), teacher.float())
    loss.center.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        assert float(loss(student, teacher)) == pytest.approx(float(expected), rel=1e-4)


def test_gradients_reach_half_precision_inputs():
    a, b = pair(3)
    a.requires_grad_()
    byol_loss_func(a, b).backward()
    assert a.grad is not None
    assert a.grad.dtype == torch.bfloat16


def test_wider_tensors_are_left_as_they_are():
    same = in_float32(lambda x, y: (x, y))
    x, y = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.int64)
    assert same(x, y=y) == (x, y) or all(p is q for p, q in zip(same(x, y=y), (x, y), strict=True))
