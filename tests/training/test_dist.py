# SPDX-License-Identifier: MIT
"""Two gloo processes: equal masks and weights, and drift that is noticed (property 7)."""

import pytest
import torch
from lightning.pytorch import Callback
from torch import distributed as dist

from solo.utils.ranks import share, share_value
from sparse_ext import sparsify
from sparse_ext.training.mask_agreement import MaskDriftError, check_equal
from tests.pruning.toys import data, toy, trainer
from tests.training.processes import launch

pytestmark = pytest.mark.dist


class Perturb(Callback):
    """Flips one bit of a mask on rank 1 after three steps."""

    def on_train_batch_end(self, run, module, *_):
        if run.global_step == 3 and run.global_rank == 1:
            module.backbone[3].mask.view(-1)[0].logical_not_()


def train(rank, perturb, granularity="element"):
    """Other random state and other data on each rank."""
    model = toy(seed=rank)
    section = {"name": "synccp", "csi": "off", "update_period": 2, "debug": not perturb}
    section["granularity"] = granularity
    callback = sparsify(model, section)
    run = trainer(
        epochs=2,
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,
        callbacks=[Perturb()] if perturb else [],
    )
    torch.manual_seed(1000 + rank)
    try:
        run.fit(model, data(seed=rank))
    except MaskDriftError as error:
        return f"drift: {error}"
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    masks = [encoder.masks.checksum() for encoder in callback.pruner.encoders]
    state = {k: v for k, v in model.state_dict().items() if "running" not in k}
    digest = {k: v.double().sum().item() for k, v in state.items() if "num_batches" not in k}
    return masks, digest, callback.pruner.t, sorted(model._ddp_params_and_buffers_to_ignore)


@pytest.mark.parametrize("granularity", ["element", "2:4", "block8"])
def test_ranks_end_with_equal_masks_and_weights(granularity):
    first, second = launch(train, False, granularity)
    assert first[0] == second[0]
    assert first[1] == second[1]
    assert first[2] == second[2] == 10
    assert "backbone.3.mask" in first[3]
    assert "backbone.3.score" in first[3]
    assert "backbone.1.running_mean" not in first[3]


def test_a_mask_that_drifts_is_noticed_by_all():
    for result in launch(train, True):
        assert isinstance(result, str)
        assert "Masks after step" in result
        assert "differ between ranks" in result


def collectives(rank):
    dist.init_process_group("gloo")
    tensor = torch.full((2, 3, 2, 2), float(rank)).to(memory_format=torch.channels_last)
    mask = torch.tensor([rank == 0, rank == 1])
    share([tensor, mask])
    value = share_value(rank + 0.5)
    check_equal(-(2**63), "Things")
    try:
        check_equal(2**62 + rank, "Things")
        drift = ""
    except MaskDriftError as error:
        drift = str(error)
    dist.destroy_process_group()
    return tensor.sum().item(), mask.tolist(), value, drift


def test_the_collectives_themselves():
    for total, mask, value, drift in launch(collectives):
        assert (total, mask, value) == (0.0, [True, False], 0.5)
        assert "Things differ between ranks" in drift
        assert str(2**62 + 1) in drift


@pytest.mark.unit
def test_one_process_needs_no_collective():
    check_equal(1, "Things")
    share([torch.ones(1)])
    assert share_value(0.25) == 0.25
