# SPDX-License-Identifier: MIT
"""WebDataset shards dealt out to ranks, in the loaders and in the programs."""

import numpy as np
import pytest
import torch

from scripts.utils.convert_imgfolder_to_shards import convert_imgfolder_to_shards
from solo.args.common import check_format, set_num_classes
from solo.data.catalogue import info_of
from solo.data.classification_dataloader import prepare_data
from solo.data.pretrain_dataloader import prepare_dataloader, prepare_datasets
from solo.data.shards import dataset as shard_dataset
from solo.data.shards.dataset import ShardSampler
from solo.errors import ConfigError, DataError
from solo.utils.misc import compute_dataset_size
from tests.data.conftest import write_folder
from tests.data.shards.shard_files import few, sample, write_shard
from tests.data.test_loading import Recorder, SaveAfter
from tests.methods.helpers import tiny_trainer
from tests.programs.tiny import PRETRAIN, config

pytestmark = pytest.mark.unit


# ---- order ----


class Places:
    """As many samples as are asked for, in shards of equal size."""

    def __init__(self, count, each):
        numbers = np.arange(count * each)
        self.places = np.stack([numbers // each, numbers, numbers], 1)

    def __len__(self):
        return len(self.places)


def sampler_of(places, rank=0, ranks=1, epoch=0):
    torch.manual_seed(5)
    sampler = ShardSampler(places)
    sampler.num_replicas, sampler.rank, sampler.epoch = ranks, rank, epoch
    return sampler


@pytest.mark.parametrize(("ranks", "count", "each"), [(1, 3, 4), (3, 7, 5), (4, 2, 9), (8, 40, 25)])
def test_ranks_share_the_images_equally_and_without_overlap(ranks, count, each):
    places = Places(count, each)
    parts = [list(sampler_of(places, rank, ranks)) for rank in range(ranks)]
    assert {len(part) for part in parts} == {count * each // ranks}
    assert len(sampler_of(places, 0, ranks)) == count * each // ranks
    together = [index for part in parts for index in part]
    assert len(set(together)) == len(together)


def test_order_follows_from_seed_and_epoch():
    places = Places(30, 20)
    first = list(sampler_of(places, epoch=1))
    assert sorted(first) == list(range(600))
    assert first == list(sampler_of(places, epoch=1))
    assert first != list(sampler_of(places, epoch=2))
    sampler = sampler_of(places, epoch=0)
    list(sampler)
    assert list(sampler) == first  # without set_epoch every pass is the next epoch
    other = sampler_of(places, epoch=1)
    other.seed = 6
    assert first != list(other)


def test_a_process_stays_with_a_few_shards_which_are_mixed_well():
    places = Places(64, 50)
    order = np.array(list(sampler_of(places, rank=1, ranks=2)))
    shard = places.places[order, 0]
    window = shard_dataset.WINDOW * 50
    for start in range(0, len(order), window):
        assert len(set(shard[start : start + window])) <= shard_dataset.WINDOW
    assert len(set(shard[:50])) > shard_dataset.WINDOW / 2
    assert not set(shard) & set(places.places[list(sampler_of(places, 0, 2)), 0])


def test_the_other_processes_are_found_when_they_are_there(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    places = Places(5, 6)
    torch.manual_seed(5)
    sampler = ShardSampler(places)
    assert len(sampler) == 10
    assert list(sampler) == list(sampler_of(places, 2, 3))


# ---- in the programs' hands ----


def test_pretraining_batches(converted):
    transform = lambda image: [torch.tensor(image.getpixel((0, 0)))] * 2  # noqa: E731
    dataset = prepare_datasets("imagenet100", transform, converted, "webdataset")
    torch.manual_seed(1)
    loader = prepare_dataloader(dataset, 4, 0)
    batches = list(loader)
    assert isinstance(loader.sampler, ShardSampler)
    indexes = torch.cat([batch[0] for batch in batches])
    assert sorted(indexes.tolist()) == list(range(12))
    for index, views, targets in batches:
        assert [dataset[int(i)][2] for i in index] == targets.tolist()
        assert len(views) == 2
    part = prepare_datasets("custom", transform, converted, "webdataset", data_fraction=0.5)
    assert sorted(part[i][2] for i in range(len(part))) == [0, 0, 0, 1, 1, 1]
    blind = prepare_datasets("custom", transform, converted, "webdataset", no_labels=True)
    assert blind[0][2] == -1


def test_linear_evaluation_reads_shards(converted, tmp_path):
    val = few(tmp_path / "val")
    train_loader, val_loader = prepare_data(
        "custom", converted, val, "webdataset", batch_size=4, num_workers=1
    )
    images, targets = next(iter(train_loader))
    assert images.shape == (4, 3, 224, 224)
    assert set(targets.tolist()) <= {0, 1}
    assert len(val_loader.dataset) == 12
    write_shard(val / "more.tar", sample(50, 2))
    plain = few(tmp_path / "train")
    with pytest.raises(DataError, match=r"data\.val_path has labels up to 2, .* end at 1"):
        prepare_data("custom", plain, val, "webdataset", num_workers=0)


def test_configuration(converted):
    data = {"dataset": "custom", "train_path": str(converted), "format": "webdataset"}
    cfg = config(PRETRAIN, data=data)
    set_num_classes(cfg, info_of("custom"))
    check_format(cfg, info_of("custom"))
    assert cfg.data.num_classes == 2
    with pytest.raises(
        ConfigError, match=r"data\.format=webdataset works with imagenet, imagenet100"
    ):
        check_format(cfg, info_of("cifar10"))
    assert compute_dataset_size("custom", data_path=converted, data_format="webdataset") == 12


def test_labels_beyond_the_data_sets_classes(tmp_path):
    write_shard(tmp_path / "s" / "x.tar", [*sample(0, 100), *sample(1, 3)])
    with pytest.raises(DataError, match=r"there is a label 100 in .*, but 100 classes"):
        prepare_datasets("imagenet100", None, tmp_path / "s", "webdataset")


@pytest.mark.parametrize("augment", ["workers", "device"])
def test_pretrain_program(tmp_path, monkeypatch, augment):
    from solo.programs.pretrain import pretrain

    monkeypatch.chdir(tmp_path)
    convert_imgfolder_to_shards(write_folder(tmp_path / "f"), tmp_path / "s", shard_size=4)
    entry = PRETRAIN["augmentations"][0]
    cfg = config(
        PRETRAIN,
        method="simclr",
        method_kwargs={"proj_hidden_dim": 16, "proj_output_dim": 8, "temperature": 0.2},
        data={
            "dataset": "custom",
            "train_path": str(tmp_path / "s"),
            "val_path": str(tmp_path / "s"),
            "format": "webdataset",
            "num_workers": 1,
            "augment": augment,
        },
        augmentations=[{**entry, "crop_size": 16}, {**entry, "crop_size": 8, "num_crops": 1}],
        optimizer__batch_size=4,
    )
    trainer = pretrain(cfg)
    assert trainer.global_step == 2
    assert isinstance(trainer.train_dataloader.sampler, ShardSampler)
    assert trainer.callback_metrics["train_nce_loss"].isfinite()


def test_a_resumed_run_is_fed_like_the_straight_one(converted, tmp_path):
    def fit(callbacks, ckpt_path=None):
        torch.manual_seed(3)
        dataset = prepare_datasets("custom", lambda image: torch.rand(2), converted, "webdataset")
        module, loader = Recorder(), prepare_dataloader(dataset, 4, 0)
        tiny_trainer(max_epochs=4, callbacks=callbacks).fit(module, loader, ckpt_path=ckpt_path)
        return module.seen

    straight = fit([SaveAfter(1, tmp_path / "ep1.ckpt")])
    resumed = fit([], ckpt_path=tmp_path / "ep1.ckpt")
    assert sorted(straight) == [0, 1, 2, 3]
    assert straight[2] != straight[3]
    assert resumed == {epoch: straight[epoch] for epoch in (2, 3)}
