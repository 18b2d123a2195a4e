# SPDX-License-Identifier: MIT
"""Two gloo processes: equal weights, warm-up, and the budget of the mean."""

import pytest
import torch
from torch import distributed as dist

from solo.utils.ranks import mean_with_own_gradient
from sparse_ext.gating.encoder import gating_of
from tests.gating.helpers import method
from tests.methods.helpers import tiny_loaders, tiny_trainer
from tests.training.test_dist import launch

pytestmark = pytest.mark.dist


def train(rank, section):
    torch.manual_seed(0)
    model = method("byol", section)
    torch.manual_seed(1000 + rank)  # other noise on every rank
    run = tiny_trainer(devices=2, strategy="ddp", max_epochs=2)
    try:
        run.fit(model, tiny_loaders(steps=4)[0])
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    state = {k: v for k, v in model.state_dict().items() if "running" not in k}
    digest = {k: v.double().sum().item() for k, v in state.items() if "num_batches" not in k}
    rho = next(v for k, v in run.callback_metrics.items() if k.endswith("/rho"))
    return digest, float(rho), gating_of(model.backbone).config.name


@pytest.mark.parametrize(
    "section",
    [
        {"name": "vicreg_dual", "sync_flops": True},
        {"name": "vicreg_dual", "warmup_gate": True, "warmup_epochs": 1},
        {"name": "cdg", "groups": 2, "lamb": 0.1},
        {"name": "dgc"},
    ],
)
def test_ranks_end_with_equal_weights(section):
    """In warm-up the gates get no gradient, which DDP would not forgive."""
    first, second = launch(train, section)
    assert first == second


def average(rank):
    dist.init_process_group("gloo")
    value = torch.tensor(float(rank) + 0.5, requires_grad=True)
    loss = (mean_with_own_gradient(value) - 0.2) ** 2
    loss.backward()
    dist.destroy_process_group()
    return loss.item(), value.grad.item()


def test_mean_over_the_processes():
    for loss, slope in launch(average):
        assert loss == pytest.approx(0.8**2)  # of the mean of 0.5 and 1.5
        assert slope == pytest.approx(2 * 0.8)
