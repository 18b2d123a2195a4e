# SPDX-License-Identifier: MIT
"""Resident data: the same images, labels and order as the ordinary loader, and its errors."""

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DistributedSampler
from torchvision.datasets import STL10

from solo.data.catalogue import pretrain_statistics
from solo.data.pretrain_dataloader import prepare_dataloader, prepare_datasets
from solo.data.resident import memory
from solo.data.resident.loader import ResidentData, ResidentLoader, prepare_resident
from solo.data.resident.memory import free_host_memory, require_host_memory
from solo.data.views.batched import build_views
from solo.errors import ConfigError, DataError
from tests.data.conftest import augmentation, write_folder
from tests.data.test_pretrain_dataloader import write_cifar

pytestmark = pytest.mark.unit
PLAIN = [{"crop_size": 32, "num_crops": 1}]


def resident(dataset="custom", path=None, entries=PLAIN, **options):
    return prepare_resident(dataset, build_views(dataset, entries), path, **options)


def loader_of(dataset, batch_size=4, seed=3):
    torch.manual_seed(seed)
    return ResidentData(dataset, batch_size).train_dataloader()


def same_batches(one, other):
    def flat(batch):
        return [batch[0], *batch[1], batch[2]]

    return len(one) == len(other) and all(
        torch.equal(x, y)
        for a, b in zip(one, other, strict=True)
        for x, y in zip(flat(a), flat(b), strict=True)
    )


# ---- the same images and labels as from files ---------------------------------------------------


def assert_same_images(dataset, path, made, **options):
    """Images, labels and length are those that the ordinary dataset reads."""
    wanted = prepare_datasets(dataset, lambda image: image, path, **options)
    assert len(made) == len(wanted)
    for i in range(0, len(wanted), max(1, len(wanted) // 20)):
        index, image, target = wanted[i]
        assert made[i][0] == index == i
        assert np.array_equal(made[i][1].numpy(), np.array(image.convert("RGB")).transpose(2, 0, 1))
        assert made[i][2] == target
    assert made.images.dtype == torch.uint8


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_files(tmp_path, name, monkeypatch):
    write_cifar(tmp_path, name)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    made = resident(name, tmp_path, download=False)
    assert_same_images(name, tmp_path, made, download=False)


def test_cifar_folders(tmp_path):
    write_folder(tmp_path / "cifar", classes=[f"class{i}" for i in range(10)], per_class=2, size=32)
    made = resident("cifar10", tmp_path / "cifar")
    assert_same_images("cifar10", tmp_path / "cifar", made)
    assert made.targets == [i for i in range(10) for _ in range(2)]


def test_digits():
    made = resident("digits")
    assert_same_images("digits", None, made)
    assert made.images.shape == (2874, 3, 32, 32)


def test_stl10(monkeypatch):
    rng = np.random.default_rng(0)

    def fake(self, root, split, transform, download):
        assert split == "train+unlabeled"
        self.data = rng.integers(0, 256, (5, 3, 96, 96), dtype=np.uint8)
        self.labels, self.transform, self.target_transform = (
            np.array([1, 2, -1, -1, -1]),
            None,
            None,
        )

    monkeypatch.setattr(STL10, "__init__", fake)
    made = resident("stl10")
    assert made.images.shape == (5, 3, 96, 96)
    assert made.targets == [1, 2, -1, -1, -1]


def test_folder_and_flat_folder(folder, flat_folder):
    assert_same_images("custom", folder, resident("custom", folder, threads=2))
    made = resident("custom", flat_folder, no_labels=True)
    assert_same_images("custom", flat_folder, made, no_labels=True)
    assert made.targets is None
    assert loader_of(made).dataset.batch([0, 1], seed=1)[2].tolist() == [-1, -1]


def test_h5_file(folder, tmp_path):
    path = tmp_path / "images.h5"
    with h5py.File(path, "w") as file:
        for image in sorted(folder.rglob("*.jpg")):
            data = np.frombuffer(image.read_bytes(), dtype=np.uint8)
            file.create_dataset(f"{image.parent.name}/{image.name}", data=data)
    made = resident("imagenet", path)
    assert_same_images("imagenet", path, made, data_format="h5")
    assert made.targets == [0] * 6 + [1] * 6


def test_fraction(folder):
    made = resident("custom", folder, data_fraction=0.5)
    assert_same_images("custom", folder, made, data_fraction=0.5)
    assert ResidentData(made, 4).split.fraction == 0.5
    made = resident("custom", folder, data_fraction=0.5, fraction_of="classes")
    assert len(set(made.targets)) == 1


def test_images_of_several_sizes_need_one(folder):
    Image.new("RGB", (60, 48), (10, 200, 30)).save(folder / "bee" / "wide.png")
    with pytest.raises(DataError, match=r"40x40 and 60x48 \(image 12\)\. Set data.resident_size"):
        resident("custom", folder)
    made = resident("custom", folder, size=24)
    assert made.images.shape == (13, 3, 24, 24)
    assert made.images[12].flatten(1)[:, 0].tolist() == [10, 200, 30]


# ---- batches ------------------------------------------------------------------------------------


def test_order_is_that_of_the_ordinary_loader():
    made = resident("digits", data_fraction=0.2)
    ordinary = prepare_datasets("digits", lambda image: torch.zeros(1), data_fraction=0.2)
    torch.manual_seed(3)
    ordinary = prepare_dataloader(ordinary, 64, num_workers=0)
    ours = loader_of(made, 64)
    assert len(ours) == len(ordinary) == 8
    for _ in range(2):
        for (index, views, target), (i, _, t) in zip(ours, ordinary, strict=True):
            assert torch.equal(index, i)
            assert torch.equal(target, t)
            assert index.dtype == target.dtype == torch.int64
            assert views[0].shape == (64, 3, 32, 32)
            assert views[0].dtype == torch.float32


def test_a_view_shows_its_image():
    made = resident("digits")
    index, views, _ = next(iter(loader_of(made, 64)))
    mean, std = (torch.tensor(v)[:, None, None] for v in pretrain_statistics("digits", {}))
    assert torch.allclose(views[0], (made.images[index] / 255 - mean) / std, atol=1e-5)


def test_draws_follow_from_seed_epoch_rank_and_step():
    made = resident("digits", entries=[augmentation()])
    made.images, made.targets = made.images[:256], made.targets[:256]
    epochs = [list(loader) for loader in [loader_of(made, 64)] for _ in range(2)]
    assert not torch.equal(epochs[0][0][1][0], epochs[1][0][1][0])
    late = loader_of(made, 64)
    torch.rand(100)  # what ran before does not matter
    late.sampler.set_epoch(1)
    assert same_batches(list(late), epochs[1])
    assert not same_batches(list(loader_of(made, 64, seed=4)), epochs[0])
    images = [0] * 8
    assert not torch.equal(made.batch(images, seed=1)[1][0], made.batch(images, seed=2)[1][0])


def test_two_ranks_have_half_of_the_images_each_and_other_draws():
    made = resident("digits", entries=[augmentation(crop_size=8)])
    seen = set()
    for rank in range(2):
        sampler = DistributedSampler(made, num_replicas=2, rank=rank, shuffle=True, seed=3)
        batches = list(ResidentLoader(made, batch_size=479, sampler=sampler, drop_last=True))
        assert len(batches) == 3
        mine = {int(i) for batch in batches for i in batch[0]}
        assert len(mine) == 1437
        assert not mine & seen
        seen |= mine
    assert len(seen) == 2874
    same = [ResidentLoader(made, batch_size=4, sampler=_Fixed(rank)) for rank in range(2)]
    one, other = (next(iter(loader)) for loader in same)
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1][0], other[1][0])


class _Fixed(DistributedSampler):
    """The same images on every rank."""

    def __init__(self, rank):
        super().__init__(range(8), num_replicas=2, rank=rank, seed=3)

    def __iter__(self):
        return iter(range(4))


def test_batch_larger_than_the_data_is_named(folder):
    with pytest.raises(ConfigError, match=r"optimizer.batch_size=64 is larger than .* \(12 images"):
        ResidentData(resident("custom", folder), 64)


# ---- memory -------------------------------------------------------------------------------------


def test_images_that_do_not_fit_are_an_error_with_the_sizes(folder, monkeypatch):
    monkeypatch.setattr(memory, "free_host_memory", lambda: 50_000)
    with pytest.raises(
        DataError, match=r"12 of 40x40 pixels from .*train' take 0.1 MB, but 0.1 MB are free"
    ):
        resident("custom", folder)
    with pytest.raises(DataError, match=r"data.resident_size"):
        resident("digits")
    assert len(resident("custom", folder, size=24)) == 12  # 20,736 bytes


def test_all_processes_of_the_machine_need_their_share(monkeypatch):
    monkeypatch.setattr(memory, "free_host_memory", lambda: 10 * 3072)
    require_host_memory(4, (3, 32, 32), "x", processes=2)
    with pytest.raises(DataError, match=r"take 0.0 MB in each of 3 processes"):
        require_host_memory(4, (3, 32, 32), "x", processes=3)
    monkeypatch.setenv("LOCAL_RANK", "1")
    require_host_memory(4, (3, 32, 32), "x", processes=3)


def test_free_memory_is_the_machines_or_the_containers(tmp_path):
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    assert free_host_memory(meminfo, cgroup) is None
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:      50 kB\n")
    assert free_host_memory(meminfo, cgroup) == 51_200
    cgroup.mkdir()
    (cgroup / "memory.current").write_text("30000\n")
    (cgroup / "memory.stat").write_text("anon 100\ninactive_file 5000\n")
    (cgroup / "memory.max").write_text("max\n")
    assert free_host_memory(meminfo, cgroup) == 51_200
    (cgroup / "memory.max").write_text("40000\n")
    assert free_host_memory(meminfo, cgroup) == 15_000
