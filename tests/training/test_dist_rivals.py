# SPDX-License-Identifier: MIT
"""Every family of rivals in two gloo processes: equal masks and weights, exact budgets."""

import pytest
import torch
from torch import distributed as dist
from torch import nn

from sparse_ext import sparsify
from sparse_ext.config.sections import build
from sparse_ext.masks.dual_norms import DualBatchNorm2d
from sparse_ext.masks.masking import patch
from sparse_ext.pruning.scores.first_batch import Probe
from sparse_ext.pruning.scores.scorers import hessian_gradient
from tests.pruning.methods.test_all import Views, units_on
from tests.pruning.toys import data, toy, trainer
from tests.training.processes import launch

pytestmark = pytest.mark.dist

# sparse section, pair of encoders: growing, fixed, living, doubled batch norms ...
FAMILIES = {
    "granet": ({"update_period": 2}, True),
    "grasp": ({}, False),
    "sr_ste": ({}, True),
    "sdclr": ({}, False),
}
# ... and all the others
OTHERS = {
    "granet filter": ({"name": "granet", "update_period": 2, "granularity": "filter"}, False),
    "rigl": ({"update_period": 2}, False),
    "rigl_itop": ({"update_period": 2, "granularity": "block8"}, True),
    "oneshot": ({"prune_at": 0.5}, True),
    "random": ({}, True),
    "snip": ({}, True),
    "asp": ({"tensor_core": False}, True),
    "sd": ({}, True),
    "sd one encoder": ({"name": "sd"}, False),
    "mcp": ({"admm_end": 0.4}, True),
}


def train(rank, section, momentum):
    """Other weights, random numbers and data on each rank."""
    torch.manual_seed(rank)
    model = Views(momentum=momentum)
    callback = sparsify(model, {**section, "debug": True})
    run = trainer(epochs=2, devices=2, strategy="ddp", use_distributed_sampler=False)
    torch.manual_seed(1000 + rank)
    run.fit(model, data(batches=3, seed=rank))
    pruner = callback.pruner
    named = model.named_parameters()
    return {
        "masks": [encoder.masks.checksum() for encoder in pruner.encoders],
        "weights": {name: p.double().sum().item() for name, p in named},
        "steps": pruner.t,
        "budgets": [pruner.units.budget(final) for final in pruner.finals],
        "kept": [units(encoder, pruner) for encoder in pruner.encoders],
        "dual": sum(isinstance(m, DualBatchNorm2d) for m in model.modules()),
    }


def units(encoder, pruner):
    granularity = str(pruner.units.granularity)
    return sum(units_on(mask, granularity) for mask in encoder.masks.values())


def several(rank, families):
    dist.init_process_group("gloo")  # once: the store of a second group might be the first one's
    found = {
        name: train(rank, {"name": name.split()[0], **section}, momentum)
        for name, (section, momentum) in families.items()
    }
    dist.destroy_process_group()
    return found


def check(families):
    runs = launch(several, families)
    for name in families:
        first, second = runs[0][name], runs[1][name]
        assert first == second, name
        assert first["steps"] == 6
        assert first["kept"] == first["budgets"], name
        assert first["dual"] == {"sdclr": 1, "mcp": 1}.get(name, 0)


def test_ranks_of_every_family_end_alike_and_on_budget():
    check(FAMILIES)


@pytest.mark.slow
def test_ranks_of_all_others_end_alike_and_on_budget():
    check(OTHERS)


# -- scores of one process with the joint batch --------------------------------------------------


def without_norm(seed=0):
    model = toy(seed=seed, momentum=False)
    model.backbone[1] = nn.Identity()
    return model


def batches(parts=2):
    x, y = next(iter(data(batches=1, size=4 * parts, seed=5)))
    return [[x[p], y[p]] for p in (slice(4 * i, 4 * i + 4) for i in range(parts))], [x, y]


def scores(rank, name, norm):
    """Of the first batches as two processes with four samples each see them."""
    dist.init_process_group("gloo")
    model = toy(momentum=False) if norm else without_norm()
    patch(model.backbone, build("snip"))
    probe = Probe(model, None, batches()[0][rank])
    found = probe.gradients() if name == "snip" else probe.second_order(hessian_gradient)
    dist.destroy_process_group()
    return {key: value.tolist() for key, value in found.items()}


@pytest.mark.parametrize(("name", "norm"), [("snip", False), ("grasp", False), ("grasp", True)])
def test_scores_equal_those_of_one_process_with_the_joint_batch(name, norm):
    """SNIP averages gradients, so batch norm sees one process's samples; GraSP's sees all."""
    first, second = launch(scores, name, norm)
    assert first == second
    model = toy(momentum=False) if norm else without_norm()
    patch(model.backbone, build("snip"))
    probe = Probe(model, None, batches()[1])
    alone = probe.gradients() if name == "snip" else probe.second_order(hessian_gradient)
    for key, value in alone.items():
        torch.testing.assert_close(torch.tensor(first[key]), value)


def contrastive(rank):
    """A loss between all samples, synchronised statistics; unlike numbers of samples."""
    from solo.losses.simclr import simclr_loss_func
    from solo.utils.ranks import gather, get_rank

    if rank is not None:
        dist.init_process_group("gloo")
    model = toy(momentum=False)
    patch(model.backbone, build("snip"))
    model.backbone[1] = nn.SyncBatchNorm(8)

    def step(batch, index):
        z = torch.cat([model_of.backbone(view) for view in batch[:2]])
        index = torch.arange(len(batch[0])) + 100 * get_rank()
        return simclr_loss_func(z, index.repeat(2), 0.2) + 0 * gather(z).sum()

    x = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    part = {None: slice(None), 0: slice(0, 4), 1: slice(4, 10)}[rank]
    probe = Probe(model, None, [x[part], x[part].flip(-1)])
    model_of = probe.module
    probe.module.training_step = step
    found = probe.second_order(hessian_gradient)
    if rank is not None:
        dist.destroy_process_group()
    return {key: value.tolist() for key, value in found.items()}


def test_grasp_of_a_contrastive_loss_sees_the_samples_of_all_processes():
    first, second = launch(contrastive)
    assert first == second
    for key, value in contrastive(None).items():
        torch.testing.assert_close(torch.tensor(first[key]), torch.tensor(value))
