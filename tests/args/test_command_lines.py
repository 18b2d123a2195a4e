# SPDX-License-Identifier: MIT
"""Command lines of main_knn.py and main_umap.py."""

from argparse import ArgumentParser
from pathlib import Path

import pytest

from solo.args.common import default_workers
from solo.args.dataset import augmentations_args, linear_augmentations_args
from solo.args.knn import parse_args_knn
from solo.args.umap import parse_args_umap

pytestmark = pytest.mark.unit
NEEDED = ["--dataset", "imagenet100", "--train_data_path", "a", "--pretrained_checkpoint_dir", "c"]


def argv(monkeypatch, *args):
    monkeypatch.setattr("sys.argv", ["prog", *args])


def test_knn(monkeypatch):
    lists = ["--k", "2", "20", "--temperature", "0.1", "--distance_function", "euclidean", "cosine"]
    argv(monkeypatch, *NEEDED, "--val_data_path", "b", *lists, "--feature_type", "projector")
    args = parse_args_knn()
    assert (args.k, args.temperature) == ([2, 20], [0.1])
    assert args.distance_function == ["euclidean", "cosine"]
    assert args.feature_type == ["projector"]
    assert (args.train_data_path, args.val_data_path) == (Path("a"), Path("b"))
    assert (args.batch_size, args.data_format) == (16, "image_folder")
    assert args.num_workers == default_workers()
    assert (args.data_fraction, args.no_labels, args.eval_encoder) == (-1.0, False, "online")


def test_umap(monkeypatch):
    argv(monkeypatch, *NEEDED, "--batch_size", "4", "--no_labels", "--mean", "0", "0", "0")
    args = parse_args_umap()
    assert (args.batch_size, args.no_labels, args.mean) == (4, True, [0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (NEEDED[2:], "--dataset"),
        (["--dataset", "cifr", *NEEDED[2:]], "'cifr' is unknown. Did you mean 'cifar10'"),
        ([*NEEDED[:2], *NEEDED[4:]], "--train_data_path"),
        (NEEDED[:4], "--pretrained_checkpoint_dir"),
        ([*NEEDED, "--k", "many"], "invalid int value: 'many'"),
        ([*NEEDED, "--k", "5", "0"], "--k: 0 is out of range: it must be at least 1"),
        ([*NEEDED, "--temperature", "0"], "--temperature: 0 is out of range"),
        ([*NEEDED, "--batch_size", "0"], "--batch_size: 0 is out of range"),
        ([*NEEDED, "--num_workers", "-1"], "--num_workers: -1 is out of range"),
    ],
)
def test_mistakes_stop_with_a_usage_error(monkeypatch, capsys, args, message):
    argv(monkeypatch, *args)
    with pytest.raises(SystemExit) as stop:
        parse_args_knn()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_digits_need_no_folder(monkeypatch):
    argv(monkeypatch, "--dataset", "digits", "--pretrained_checkpoint_dir", "c")
    assert parse_args_knn().train_data_path is None


def test_legacy_augmentation_arguments():
    parser = ArgumentParser()
    augmentations_args(parser)
    strengths = ["--brightness", "0.4", "--contrast", "0.4", "--saturation", "0.2", "--hue", "0.1"]
    args = parser.parse_args([*strengths, "--crop_size", "32", "18"])
    assert (args.crop_size, args.color_jitter_prob, args.num_crops_per_aug) == (
        [32, 18],
        [0.8],
        [2],
    )
    parser = ArgumentParser()
    linear_augmentations_args(parser)
    assert parser.parse_args([]).crop_size == [224]
