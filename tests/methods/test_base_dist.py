# SPDX-License-Identifier: MIT
"""Two gloo processes under DDP with half of the batch each, against one process with all of it."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from solo.methods import METHODS
from tests.methods.helpers import tiny_batch, tiny_cfg

pytestmark = pytest.mark.dist
WORLD, N, STEPS = 2, 3, 2
HEAD = {"proj_hidden_dim": 8, "proj_output_dim": 6}
KWARGS = {
    "simclr": {**HEAD, "temperature": 0.2},
    "simsiam": {**HEAD, "pred_hidden_dim": 5},
    "byol": {**HEAD, "pred_hidden_dim": 5},
    "mocov2plus": {**HEAD, "temperature": 0.2, "queue_size": 12},
    "mocov3": {**HEAD, "pred_hidden_dim": 5, "temperature": 0.3},
    "vicreg": HEAD,
    "lejepa": {**HEAD, "num_directions": 9},
    "lejepa+local": {**HEAD, "num_directions": 9},
    "dino": {**HEAD, "num_prototypes": 7},
    "dino+local": {**HEAD, "num_prototypes": 7, "local_crops": True},
    "ibot": {**HEAD, "num_prototypes": 7},
    "dinov2": {**HEAD, "num_prototypes": 7, "koleo_weight": 0.0},  # KoLeo is within the rank
    "ijepa": {"pred_embed_dim": 8, "pred_depth": 1, "pred_num_heads": 2, "min_context": 1},
}
VIT = {"img_size": 8, "patch_size": 2, "depth": 1, "embed_dim": 12}
MEAN = {"class_token": False, "global_pool": "avg", "fc_norm": False}
ANY = {**VIT, "dynamic_img_size": True}
BACKBONES = {"ibot": VIT, "dinov2": VIT, "ijepa": {**VIT, **MEAN}}
BACKBONES |= {"lejepa+local": ANY, "dino+local": ANY}


class Step(nn.Module):
    """The training step as the forward pass, which is what Lightning gives to DDP."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model.training_step(batch, 0)


def build(name):
    torch.manual_seed(1)
    method, _, local = name.partition("+")
    small = 2 if local else 0
    cfg = tiny_cfg(method, KWARGS[name], momentum__classifier=True, data__num_small_crops=small)
    if name in BACKBONES:
        cfg.backbone = {"name": "vit_tiny", "kwargs": BACKBONES[name]}
    model = METHODS[method](cfg).double()
    # fixed statistics: batch statistics of half a batch are others than those of all of it
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def train(name, rows):
    """Some steps of SGD on these rows of each batch; losses, and the final state."""
    model = build(name)
    step = Step(model)
    if dist.is_initialized():
        step = DistributedDataParallel(step)
    groups = [{"params": list(group["params"])} for group in model.learnable_params]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    losses = []
    for i in range(STEPS):
        indexes, views, targets = tiny_batch(WORLD * N, small=model.num_small_crops, seed=i)
        loss = step([indexes[rows], [view[rows].double() for view in views], targets[rows]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        for pair in getattr(model, "momentum_pairs", []):
            model.momentum_updater.update(*pair)
    return torch.stack(losses), model.state_dict()


def worker(rank, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    rows = slice(rank * N, (rank + 1) * N)
    torch.save({name: train(name, rows) for name in KWARGS}, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (str(folder / "store"), str(folder)), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", KWARGS)
def test_two_processes_equal_one(ranks, name):
    losses, state = train(name, slice(None))
    torch.testing.assert_close(sum(rank[name][0] for rank in ranks) / WORLD, losses)
    for rank in ranks:
        assert rank[name][1].keys() == state.keys()
        for key, value in state.items():
            torch.testing.assert_close(rank[name][1][key], value, msg=f"{name}: {key}")


def test_queues_are_equal_on_all_ranks(ranks):
    first, second = (rank["mocov2plus"][1] for rank in ranks)
    assert torch.equal(first["queue"], second["queue"])
    assert first["queue_ptr"].item() == 0
