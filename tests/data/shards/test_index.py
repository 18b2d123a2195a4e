# SPDX-License-Identifier: MIT
"""WebDataset shards: written from a folder, read back; broken ones."""

import io
import json
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from scripts.utils.convert_imgfolder_to_shards import convert_imgfolder_to_shards
from scripts.utils.convert_imgfolder_to_shards import main as convert
from solo.data.datasets.images import ReadError, decode_pixels
from solo.data.datasets.unreadable import without_unreadable
from solo.data.pretrain_dataloader import prepare_datasets
from solo.data.shards import dataset as shard_dataset
from solo.data.shards import index as shards
from solo.data.shards.dataset import ShardDataset
from solo.data.shards.index import read_shards
from solo.data.shards.stored_index import index_paths
from solo.errors import DataError
from tests.data.shards.shard_files import few, jpeg, sample, write_shard

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]


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


def test_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_dataset, "OPEN_FILES", 2)
    dataset = ShardDataset(few(tmp_path / "s", count=5, each=1))
    levels = [dataset[i][0].getpixel((0, 0)) for i in (0, 1, 2, 3, 4, 0)]
    assert levels[0] == levels[5] != levels[1]
    assert len(dataset._files) == 2
    copy = pickle.loads(pickle.dumps(dataset))
    assert not copy._files
    assert copy[2][0].getpixel((0, 0)) == levels[2]


FORK = """
import os, sys
from solo.data.shards.dataset import ShardDataset
dataset = ShardDataset(sys.argv[1])
for i in range(3):
    dataset[i]
before = len(dataset._files)
child = os.fork()
if child == 0:
    dataset[3]
    os._exit(len(dataset._files))
print(before, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_opens_its_own_files(tmp_path):
    """In a program of its own: this one has threads, whose locks a fork would copy."""
    shards = few(tmp_path / "s", count=5, each=1)
    command = [sys.executable, "-c", FORK, str(shards)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.split() == ["3", "1"]
