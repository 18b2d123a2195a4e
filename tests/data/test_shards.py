# SPDX-License-Identifier: MIT
"""WebDataset shards: written from a folder, read back, dealt out to ranks; broken ones."""

import io
import json
import multiprocessing
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from scripts.utils.convert_imgfolder_to_shards import convert_imgfolder_to_shards
from scripts.utils.convert_imgfolder_to_shards import main as convert
from solo.args.common import check_format, set_num_classes
from solo.data import shard_dataset, shards
from solo.data.classification_dataloader import prepare_data
from solo.data.images import ReadError, decode_pixels
from solo.data.pretrain_dataloader import prepare_dataloader, prepare_datasets
from solo.data.shard_dataset import ShardDataset, ShardSampler
from solo.data.shards import read_shards
from solo.data.stored_index import index_paths
from solo.data.unreadable import without_unreadable
from solo.errors import ConfigError, DataError
from solo.utils.misc import compute_dataset_size
from tests.data.conftest import write_folder
from tests.data.test_loading import Recorder, SaveAfter
from tests.methods.helpers import tiny_trainer
from tests.programs.tiny import PRETRAIN, config

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]


def jpeg(value=0):
    stream = io.BytesIO()
    Image.new("RGB", (24, 20), (value, 10, 90)).save(stream, "JPEG")
    return stream.getvalue()


def write_shard(path, members):
    """A tar file with the members (name, bytes), by nobody's converter but this one's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample(number, label=None):
    labels = [] if label is None else [(f"{number:04d}.cls", str(label).encode())]
    return [(f"{number:04d}.jpg", jpeg(number)), *labels]


def few(folder, count=3, each=4, labelled=True):
    """`count` shards with `each` samples; the label of sample n is n % 2."""
    for shard in range(count):
        numbers = range(shard * each, (shard + 1) * each)
        members = [m for n in numbers for m in sample(n, n % 2 if labelled else None)]
        write_shard(folder / f"part-{shard:04d}.tar", members)
    return folder


@pytest.fixture
def converted(folder):
    convert_imgfolder_to_shards(folder, folder.parent / "shards", shard_size=5)
    return folder.parent / "shards"


def test_converted_shards_hold_the_files_of_the_folder(folder, converted):
    assert [p.name for p in sorted(converted.iterdir())] == [
        "index.json", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar",
    ]  # fmt: skip
    files = {(p.read_bytes(), label) for p, label in _files(folder)}
    dataset = ShardDataset(converted, decode=lambda encoded, name: encoded)
    assert len(dataset) == len(files) == 12
    assert {dataset[i] for i in range(12)} == files
    assert dataset.classes == ["ant", "bee"]
    first = [dataset[i][1] for i in range(12)]
    assert first != sorted(first)  # shards mix the classes


def _files(folder):
    return [(Path(path), label) for path, label in ImageFolder(str(folder)).imgs]


def test_converting_twice_gives_the_same_bytes_and_never_overwrites(folder, converted, tmp_path):
    convert_imgfolder_to_shards(folder, tmp_path / "again", shard_size=5)
    for shard in sorted(converted.glob("*.tar")):
        assert shard.read_bytes() == (tmp_path / "again" / shard.name).read_bytes()
    with pytest.raises(DataError, match=r"--shards_path: .* holds shards already"):
        convert_imgfolder_to_shards(folder, converted)


def test_converter_command_line(flat_folder, tmp_path, monkeypatch, capsys):
    script = ROOT / "scripts" / "utils" / "convert_imgfolder_to_shards.py"
    arguments = ["--folder_path", str(flat_folder), "--no_labels", "--shard_size", "3"]
    arguments += ["--shards_path", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    index = read_shards(tmp_path / "out", "key")
    assert (len(index.shards), len(index.places), index.labels) == (3, 8, None)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    assert convert() == 2  # there are shards already
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --shards_path")


def test_samples_of_other_writers(tmp_path):
    """Fields of any case and number, folders in keys, hidden members, PNG."""
    png = io.BytesIO()
    Image.new("RGB", (5, 4), (1, 2, 3)).save(png, "PNG")
    members = [
        ("./n01/a_1.JPEG", jpeg()), ("./n01/a_1.cls", b"3\n"), ("./n01/a_1.json", b"{}"),
        ("./n02/a_1.png", png.getvalue()), ("./n02/a_1.cls", b"0"), ("./._n02", b"x"),
    ]  # fmt: skip
    write_shard(tmp_path / "a.tar", members)
    index = read_shards(tmp_path, "key")
    assert index.labels.tolist() == [3, 0]
    assert (index.num_classes, index.classes) == (4, None)
    dataset = ShardDataset(tmp_path)
    assert [dataset[i][0].size for i in range(2)] == [(24, 20), (5, 4)]
    assert dataset[1][0].getpixel((0, 0)) == (1, 2, 3)


def test_a_pattern_chooses_shards(tmp_path):
    few(tmp_path / "all", count=2)
    write_shard(tmp_path / "all" / "val-0.tar", sample(0, 1))
    assert len(read_shards(tmp_path / "all", "key").places) == 9
    assert len(read_shards(tmp_path / "all" / "val-*.tar", "key").places) == 1
    assert len(read_shards(tmp_path / "all" / "part-*.tar", "key").places) == 8


def test_the_index_is_read_again_only_when_a_shard_changed(tmp_path, monkeypatch):
    folder, calls = few(tmp_path / "s"), []
    samples = shards._samples
    monkeypatch.setattr(shards, "_samples", lambda *a: calls.append(a) or samples(*a))
    first, second = read_shards(folder, "key"), read_shards(folder, "key")
    assert len(calls) == 3
    assert np.array_equal(first.places, second.places)
    assert np.array_equal(first.labels, second.labels)
    assert index_paths(folder)[0].is_file()
    write_shard(folder / "part-0001.tar", sample(1, 7))
    assert read_shards(folder, "key").labels.max() == 7


def test_labels_wanted_needed_and_ignored(tmp_path):
    with_labels, without = few(tmp_path / "a"), few(tmp_path / "b", labelled=False)
    assert [ShardDataset(with_labels)[i][1] for i in range(4)] == [0, 1, 0, 1]
    assert ShardDataset(with_labels, labels="ignored")[1][1] == -1
    assert ShardDataset(without)[1][1] == -1
    with pytest.raises(DataError, match=r"data\.val_path: the samples in .* have no labels.*\.cls"):
        ShardDataset(without, key="data.val_path", labels="needed")
    with pytest.raises(DataError, match=r"there is a label 1 in .*, but 1 classes"):
        ShardDataset(with_labels, num_classes=1)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*sample(0, 1), *sample(1)], r"sample '0001' in .*x\.tar' has no label \('\.cls'\)"),
        ([("7.txt", b""), ("7.cls", b"1")], r"sample '7' .* has no image: found \.txt, \.cls"),
        ([("7.jpg", b""), ("7.seg.png", b"")], r"sample '7' .* has 2 images"),
        ([("7.jpg", b""), ("7.cls", b"cat")], r"'7\.cls' in .* holds 'cat', a label must be"),
        ([("7.jpg", b""), ("7.cls", b"-2")], r"holds '-2'"),
        ([], r"the shards hold no samples.*convert_imgfolder_to_shards\.py"),
    ],
)
def test_odd_samples_are_named(tmp_path, members, message):
    write_shard(tmp_path / "s" / "x.tar", members)
    with pytest.raises(DataError, match=r"(?s)data\.train_path: .*" + message):
        read_shards(tmp_path / "s", "data.train_path")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95])
def test_a_truncated_shard_is_named(tmp_path, share):
    path = few(tmp_path / "s") / "part-0001.tar"
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: int(share * (last.offset_data + last.size))])
    with pytest.raises(DataError, match=r"shard '.*part-0001\.tar' is truncated or no tar file"):
        read_shards(tmp_path / "s", "key")


def test_a_shard_cut_between_two_members_is_noticed(tmp_path):
    path = few(tmp_path / "s") / "part-0002.tar"
    with tarfile.open(path) as tar:
        cut = tar.getmembers()[4].offset
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"part-0002\.tar' is truncated"):
        read_shards(tmp_path / "s", "key")


def test_a_broken_header_inside_is_noticed(tmp_path):
    path = few(tmp_path / "s") / "part-0000.tar"
    with tarfile.open(path) as tar:
        at = tar.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[at : at + 512] = b"\x55" * 512
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"part-0000\.tar' is truncated or no tar"):
        read_shards(tmp_path / "s", "key")


def test_missing_shards_are_counted_and_named(converted):
    (converted / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"1 of 3 shards are missing .*'shard-000001\.tar'"):
        read_shards(converted, "data.train_path")


def test_a_shard_with_too_few_samples_is_named(converted):
    write_shard(converted / "shard-000001.tar", sample(1, 1))
    with pytest.raises(DataError, match=r"shard-000001\.tar' has 1 samples, but .* says 5"):
        read_shards(converted, "key")


def test_a_list_that_is_none_is_named(converted):
    for text in ("[]", "{", json.dumps({"shardlist": [{"url": "a.tar"}]})):
        (converted / "index.json").write_text(text)
        with pytest.raises(DataError, match=r"index\.json' is no list of shards"):
            read_shards(converted, "key")


def test_places_without_shards_say_what_to_do(tmp_path, folder):
    with pytest.raises(DataError, match=r"data\.train_path: there is no folder '.*none'"):
        read_shards(tmp_path / "none" / "*.tar", "data.train_path")
    with pytest.raises(DataError, match=r"no shards match .*convert_imgfolder_to_shards\.py"):
        read_shards(folder, "key")
    (folder / "a.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"'a\.tar\.gz' is no plain \.tar file: unpack"):
        read_shards(folder, "key")


def test_a_broken_image_is_named_counted_and_left_out_if_asked(tmp_path):
    broken = [("0099.jpg", jpeg()[:200]), ("0099.cls", b"1")]
    write_shard(tmp_path / "s" / "x.tar", [*sample(0, 0), *broken, *sample(1, 1)])
    for decode in (shard_dataset.decode_image, decode_pixels):
        with pytest.raises(ReadError, match=r"Cannot read image '.*x\.tar:0099\.jpg'"):
            ShardDataset(tmp_path / "s", decode=decode)[1]
    dataset = prepare_datasets("custom", None, tmp_path / "s", "webdataset")
    with pytest.warns(UserWarning, match=r"1 of 3 images .* are broken"):
        kept = without_unreadable(dataset, "x", 2)
    assert len(kept) == 2
    assert [kept[i][2] for i in range(2)] == [0, 1]


def test_a_shard_that_disappears_while_training_is_named(tmp_path):
    dataset = ShardDataset(few(tmp_path / "s"))
    (tmp_path / "s" / "part-0002.tar").unlink()
    assert dataset[0]
    with pytest.raises(ReadError, match=r"Cannot read '.*part-0002\.tar'"):
        dataset[11]


def test_few_files_stay_open_and_processes_have_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_dataset, "OPEN_FILES", 2)
    dataset = ShardDataset(few(tmp_path / "s", count=5, each=1))
    levels = [dataset[i][0].getpixel((0, 0)) for i in (0, 1, 2, 3, 4, 0)]
    assert levels[0] == levels[5] != levels[1]
    assert len(dataset._files) == 2
    copy = pickle.loads(pickle.dumps(dataset))
    assert not copy._files
    assert copy[2][0].getpixel((0, 0)) == levels[2]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(opened, (dataset,)) == 1


def opened(dataset):
    dataset[3]
    return len(dataset._files)


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
    set_num_classes(cfg)
    check_format(cfg)
    assert cfg.data.num_classes == 2
    cfg.data.dataset = "cifar10"
    with pytest.raises(ConfigError, match=r"data\.format=webdataset works with imagenet100"):
        check_format(cfg)
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
