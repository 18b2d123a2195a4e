# SPDX-License-Identifier: MIT
"""What a loader yields depends on seed, epoch and image alone."""

import pickle
import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from solo.data.datasets.digits import DigitsDataset
from solo.data.loading import SeededItems, make_loader, seeded
from solo.data.pretrain_dataloader import dataset_with_index, prepare_dataloader
from solo.seeding import mix

pytestmark = pytest.mark.unit


class Draws(Dataset):
    """Each item draws from the three random generators."""

    def __init__(self, n=24):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        draws = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return torch.tensor(draws, dtype=torch.float64), index


def epoch_draws(loader):
    """{index: its draws} of one pass, and the order."""
    order, draws = [], {}
    for indexes, values, _ in loader:
        order += indexes.tolist()
        draws.update({i: tuple(v.tolist()) for i, v in zip(indexes.tolist(), values, strict=True)})
    return order, draws


def loader_of(num_workers, seed=3):
    torch.manual_seed(seed)
    return make_loader(dataset_with_index(Draws)(), 4, num_workers, shuffle=True, drop_last=True)


@pytest.fixture(scope="module")
def two_epochs():
    loader = loader_of(0)
    return epoch_draws(loader), epoch_draws(loader)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_do_not_change_order_or_draws(num_workers, two_epochs):
    loader = loader_of(num_workers)
    assert (epoch_draws(loader), epoch_draws(loader)) == two_epochs


def test_epochs_differ_and_items_differ(two_epochs):
    (order_0, draws_0), (order_1, draws_1) = two_epochs
    assert order_0 != order_1
    assert sorted(order_0) == sorted(order_1) == list(range(24))
    for generator in range(3):
        seen = {draws[i][generator] for draws in (draws_0, draws_1) for i in range(24)}
        assert len(seen) == 48


def test_epoch_can_be_entered_directly(two_epochs):
    loader = loader_of(0)
    torch.rand(100)  # what ran before does not matter
    loader.sampler.set_epoch(1)
    assert epoch_draws(loader) == two_epochs[1]


def test_other_seed_other_draws(two_epochs):
    assert epoch_draws(loader_of(0, seed=4)) != two_epochs[0]


def test_main_process_keeps_its_random_state():
    loader = loader_of(0)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1), np.random.seed(1)
    iterator = iter(loader)
    next(iterator)
    assert (random.random(), np.random.rand()) == expected


def test_two_ranks_together_see_what_one_process_sees(two_epochs):
    dataset = dataset_with_index(Draws)()
    seen = {}
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=True, seed=3)
        sampler.set_epoch(1)
        loader = type(loader_of(0))(dataset, batch_size=4, sampler=sampler)
        seen.update(epoch_draws(loader)[1])
    assert seen == two_epochs[1][1]


def test_standing_epoch_still_gives_new_draws():
    dataset = dataset_with_index(Draws)()
    sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=False)
    loader = type(loader_of(0))(dataset, batch_size=4, sampler=sampler)
    assert epoch_draws(loader)[1] != epoch_draws(loader)[1]


def test_a_plain_loader_leaves_the_generators_alone():
    dataset = dataset_with_index(Draws)()
    first = next(iter(DataLoader(dataset, batch_size=4)))[1]
    second = next(iter(DataLoader(dataset, batch_size=4)))[1]
    assert not torch.equal(first, second)


def test_datasets_keep_their_class_and_survive_pickle():
    dataset = dataset_with_index(DigitsDataset)(renderings=1)
    copy = pickle.loads(pickle.dumps(dataset))
    assert isinstance(copy, DigitsDataset)
    assert isinstance(copy, SeededItems)
    assert copy[3][0] == 3
    assert copy[3][2] == dataset[3][2]
    plain = pickle.loads(pickle.dumps(seeded(DigitsDataset)(renderings=1)))
    assert plain[3][1] == dataset[3][2]


def test_mix_depends_on_every_number_and_their_order():
    seeds = {mix(a, b) for a in range(50) for b in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)


class Recorder(pl.LightningModule):
    """Notes what it is fed."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {}

    def training_step(self, batch, batch_idx):
        indexes, values, _ = batch
        fed = zip(indexes.tolist(), map(tuple, values.tolist()), strict=True)
        self.seen.setdefault(self.current_epoch, []).extend(fed)
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAfter(Callback):
    """Saves at the end of one epoch."""

    def __init__(self, epoch, path):
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_resumed_run_is_fed_like_the_straight_one(tmp_path, num_workers):
    def fit(callbacks, ckpt_path=None):
        torch.manual_seed(3)
        loader = prepare_dataloader(dataset_with_index(Draws)(), 4, num_workers)
        module = Recorder()
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
        )  # fmt: skip
        trainer.fit(module, loader, ckpt_path=ckpt_path)
        return module.seen

    straight = fit([SaveAfter(1, tmp_path / "ep1.ckpt")])
    resumed = fit([], ckpt_path=tmp_path / "ep1.ckpt")
    assert sorted(straight) == [0, 1, 2, 3]
    assert sorted(resumed) == [2, 3]
    assert resumed == {epoch: straight[epoch] for epoch in (2, 3)}
