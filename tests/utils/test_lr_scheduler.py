# SPDX-License-Identifier: MIT
"""Learning-rate schedules against their closed forms, and what they leave in a checkpoint."""

import io
import math

import pytest
import torch

from solo.utils.lr_scheduler import (
    LinearWarmupCosineAnnealingLR,
    MultiStep,
    WarmupCosine,
    static_lr,
)

pytestmark = pytest.mark.unit


def sgd(*rates):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=0.1)


def rates_over(scheduler, optimizer, steps):
    out = []
    for _ in range(steps):
        out.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return out


def closed_form(step, base, warmup, total, start, floor):
    if step < warmup:
        return start + step * (base - start) / (warmup - 1)
    return floor + (base - floor) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


@pytest.mark.parametrize(("warmup", "total"), [(10, 50), (2, 9), (5, 6)])
def test_closed_form(warmup, total):
    optimizer = sgd(1.0, 0.3)
    scheduler = LinearWarmupCosineAnnealingLR(optimizer, warmup, total, 0.01, 0.002)
    for step, rates in enumerate(rates_over(scheduler, optimizer, total + 1)):
        expected = [closed_form(step, base, warmup, total, 0.01, 0.002) for base in (1.0, 0.3)]
        assert rates == pytest.approx(expected, abs=1e-15)


def test_against_the_recursion_of_lightning_bolts():
    """The chainable form that solo-learn runs, for integer warm-up."""
    warmup, total, start, floor, base = 4, 20, 0.1, 0.05, 2.0
    optimizer = sgd(base)
    scheduler = LinearWarmupCosineAnnealingLR(optimizer, warmup, total, start, floor)
    rate = start
    for step, (got,) in enumerate(rates_over(scheduler, optimizer, total + 1)):
        if 0 < step < warmup:
            rate += (base - start) / (warmup - 1)
        elif step == warmup:
            rate = base
        elif step > warmup:
            angle = math.pi / (total - warmup)
            ratio = 1 + math.cos(angle * (step - warmup))
            ratio /= 1 + math.cos(angle * (step - warmup - 1))
            rate = ratio * (rate - floor) + floor
        assert got == pytest.approx(rate, abs=1e-12)


def test_fractional_warmup_never_overshoots_and_ends_at_the_floor():
    optimizer = sgd(1.0)
    scheduler = LinearWarmupCosineAnnealingLR(optimizer, 7.8125, 40, 0.0, 0.1)
    rates = [rate for (rate,) in rates_over(scheduler, optimizer, 41)]
    assert max(rates) <= 1.0
    assert rates[:8] == sorted(rates[:8])
    assert rates[40] == pytest.approx(0.1)


def test_without_warmup_each_group_starts_at_its_own_rate():
    optimizer = sgd(1.0, 0.25)
    LinearWarmupCosineAnnealingLR(optimizer, 0, 10, warmup_start_lr=1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.25]


def test_lr_scale_scales_the_whole_curve():
    optimizer = sgd(1.0, 0.5)
    optimizer.param_groups[1]["lr_scale"] = 0.5
    scheduler = LinearWarmupCosineAnnealingLR(optimizer, 3, 9, 0.1, 0.02)
    for full, half in rates_over(scheduler, optimizer, 10):
        assert half == pytest.approx(full / 2, abs=1e-15)


@pytest.mark.parametrize(
    "build",
    [
        lambda optimizer: WarmupCosine(optimizer, 2, 10, static_indexes=[1]),
        lambda optimizer: MultiStep(optimizer, [2, 4], static_indexes=[1]),
    ],
)
def test_static_groups_keep_their_rate_and_the_state_is_plain(build):
    optimizer = sgd(1.0, 0.3)
    scheduler = build(optimizer)
    rates = rates_over(scheduler, optimizer, 6)
    assert {static for _, static in rates} == {0.3}
    assert len({scheduled for scheduled, _ in rates}) > 1
    file = io.BytesIO()
    torch.save(scheduler.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["static_indexes"] == [1]


def test_resumed_schedule_meets_the_same_rates():
    optimizer = sgd(1.0, 0.3)
    scheduler = WarmupCosine(optimizer, 2.5, 12, static_indexes=[1])
    straight = rates_over(scheduler, optimizer, 12)
    first = sgd(1.0, 0.3)
    half = WarmupCosine(first, 2.5, 12, static_indexes=[1])
    rates_over(half, first, 5)
    second = sgd(1.0, 0.3)
    resumed = WarmupCosine(second, 2.5, 12, static_indexes=[1])
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(half.state_dict())
    assert rates_over(resumed, second, 7) == straight[5:]


def test_static_lr():
    assert static_lr(lambda: [1.0, 2.0, 3.0], [0, 2], [7.0, 8.0]) == [7.0, 2.0, 8.0]
