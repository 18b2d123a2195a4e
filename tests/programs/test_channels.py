# SPDX-License-Identifier: MIT
"""Images of one or five channels, from files to features, in every program that takes them."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.utils.convert_imgfolder_to_h5 import convert_imgfolder_to_h5
from scripts.utils.convert_imgfolder_to_shards import convert_imgfolder_to_shards
from solo.args.linear import parse_cfg as parse_linear
from solo.args.pretrain import parse_cfg
from solo.backbones import build_encoder, input_channels
from solo.data.datasets.images import ReadError, readers
from solo.errors import CheckpointError, ConfigError
from solo.programs.evaluation import evaluation_loaders
from solo.programs.knn import knn
from solo.programs.linear import linear
from solo.programs.pretrain import build_data, pretrain
from sparse_ext.cost.per_layer import count
from tests.programs.tiny import LINEAR, PRETRAIN, config

MEAN, STD = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]


def view(channels, **more):
    look = {"mean": MEAN[:channels], "std": STD[:channels]}
    return {"crop_size": 16, "num_crops": 2, "rrc": {"enabled": False}, **look, **more}


def array(seed, channels, side=16):
    """(side, side, channels) levels; every channel is another one."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (side, side, channels), dtype=np.uint8)


def written(path, values):
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values[..., 0]).save(path)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A function that writes two splits of two classes, one folder each."""
    monkeypatch.chdir(tmp_path)

    def write(channels):
        suffix = ".png" if channels == 1 else ".npy"
        for split, n in (("train", 8), ("val", 4)):
            for label in "ab":
                (tmp_path / split / label).mkdir(parents=True)
                for i in range(n):
                    values = array(10 * i + (label == "b") + (split == "val") * 100, channels)
                    written(tmp_path / split / label / f"{i}{suffix}", values)
        paths = {f"{split}_path": str(tmp_path / split) for split in ("train", "val")}
        return {"dataset": "custom", "num_workers": 0, **paths}

    return write


def backbone(channels):
    return {"name": "resnet18", "kwargs": {"width": 2, "in_chans": channels}}


def expected(channels, index, split="train"):
    per_class = 8 if split == "train" else 4
    seed = 10 * (index % per_class) + index // per_class + (split == "val") * 100
    values = array(seed, channels).transpose(2, 0, 1) / 255
    shape = (channels, 1, 1)
    return (values - np.reshape(MEAN[:channels], shape)) / np.reshape(STD[:channels], shape)


def close(found, wanted):
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("kind", ["image_folder", "device", "resident", "webdataset"])
def test_every_format_shows_all_channels(folders, channels, kind, tmp_path):
    data = folders(channels)
    if kind == "webdataset":
        for split in ("train", "val"):
            convert_imgfolder_to_shards(tmp_path / split, tmp_path / f"{split}-shards")
            data[f"{split}_path"] = str(tmp_path / f"{split}-shards")
    data |= {"augment": "device"} if kind == "device" else {"format": kind}
    options = {"data": data, "backbone": backbone(channels), "optimizer__batch_size": 16}
    made = build_data(parse_cfg(config(PRETRAIN, augmentations=[view(channels)], **options)))
    if isinstance(made, tuple):
        (indexes, views, _), val = next(iter(made[0])), made[1]
    else:
        device = torch.device("cpu")
        made.trainer = Namespace(strategy=Namespace(root_device=device))
        made.setup()
        batch = next(iter(made.train_dataloader()))
        if kind == "device":
            batch = made.on_after_batch_transfer(batch, 0)
        (indexes, views, _), val = batch, made.val_dataloader()
    assert [tuple(v.shape) for v in views] == [(16, channels, 16, 16)] * 2
    if kind == "webdataset":  # in an order of its own
        wanted = [expected(channels, i) for i in range(16)]
        for image in views[0]:
            assert min(np.abs(image.numpy() - w).max() for w in wanted) < 1e-5
        return
    for index, image in zip(indexes.tolist(), views[0], strict=True):
        close(image, expected(channels, index))
    images = torch.cat([images for images, _ in val])
    assert images.shape == (8, channels, 16, 16)  # resized to 18 and cut, as evaluation does


def test_an_h5_file_has_them_too(folders, tmp_path):
    from solo.data.h5_dataset import H5Dataset

    folders(5)
    convert_imgfolder_to_h5(tmp_path / "train", tmp_path / "train.h5")
    found = H5Dataset("custom", tmp_path / "train.h5", decode=readers(channels=5)[1])
    for index in range(16):
        assert np.array_equal(
            found[index][0], array(10 * (index % 8) + index // 8, 5).transpose(2, 0, 1)
        )


@pytest.mark.parametrize("channels", [1, 5])
def test_from_pretraining_to_neighbours(folders, channels, tmp_path):
    data = folders(channels)
    options = {"data": data, "backbone": backbone(channels), "optimizer__batch_size": 8}
    kwargs = {"method_kwargs": {**PRETRAIN["method_kwargs"], "queue_size": 16}}
    flips = {"horizontal_flip": {"prob": 0.5}, "gaussian_blur": {"prob": 0.5}}
    entry = view(channels, rrc={"enabled": True}, **flips)
    trainer = pretrain(config(PRETRAIN, augmentations=[entry], **options, **kwargs))
    assert trainer.global_step == 2
    run = str(tmp_path / "trained_models" / "mocov2plus" / "0")
    given = {"pretrained_feature_extractor": run}
    trainer = linear(config(LINEAR, **options, **given))
    assert next(iter(trainer.val_dataloaders))[0].shape == (8, channels, 16, 16)
    args = json.loads((tmp_path / "trained_models" / "linear" / "0" / "args.json").read_text())
    assert args["data"]["augmentations"]["mean"] == MEAN[:channels]
    linear(config(LINEAR, **{**options, "data": {**data, "augment": "device"}}, **given))
    arguments = Namespace(
        dataset="custom", train_data_path=data["train_path"], val_data_path=data["val_path"],
        data_format="image_folder", data_fraction=-1, no_labels=False, batch_size=4, num_workers=0,
        pretrained_checkpoint_dir=run, eval_encoder="online", device="cpu", k=[1],
        temperature=[0.07], distance_function=["euclidean"], feature_type=["backbone"],
    )  # fmt: skip
    for loader in evaluation_loaders(arguments):
        assert next(iter(loader))[0].shape == (4, channels, 16, 16)
    assert len(knn(arguments)) == 1


def test_an_encoder_of_other_channels_is_not_loaded(folders, tmp_path):
    data = folders(5)
    options = {"data": data, "optimizer__batch_size": 8}
    kwargs = {"method_kwargs": {**PRETRAIN["method_kwargs"], "queue_size": 16}}
    pretrain(config(PRETRAIN, augmentations=[view(5)], backbone=backbone(5), **options, **kwargs))
    given = {"pretrained_feature_extractor": str(tmp_path / "trained_models" / "mocov2plus" / "0")}
    with pytest.raises(ConfigError, match=r"data\.augmentations\.mean=.*give 3 numbers"):
        linear(config(LINEAR, backbone=backbone(3), **options, **given))
    data["augmentations"] = {"mean": MEAN[:3], "std": STD[:3]}
    with pytest.raises(CheckpointError):
        linear(config(LINEAR, backbone=backbone(3), **options, **given))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__dataset": "digits"}, r"in_chans=5: images of data\.dataset=digits have three"),
        ({"data__format": "dali"}, r"in_chans=5 works with image_folder.*not dali"),
        ({"augmentations": [{"crop_size": 16, "num_crops": 2}]}, r"augmentations\.0\.mean=None"),
        ({"augmentations": [view(4)]}, r"augmentations\.0\.mean=.*give 5 numbers"),
        ({"augmentations": [view(5, grayscale={"prob": 0.2})]}, r"grayscale is for red.* 5 chan"),
        (
            {"augmentations": [view(5, color_jitter={"prob": 0.8, "brightness": 0.4,
                                                     "contrast": 0.4, "saturation": 0.2,
                                                     "hue": 0.1})]},
            r"augmentations\.0\.color_jitter is for red",
        ),
        ({"backbone__kwargs__in_chans": 0}, r"in_chans=0 must be an integer"),
        ({"probes": {"x": {"dataset": "digits"}}}, r"probes on digits have three channels"),
    ],
)  # fmt: skip
def test_what_is_for_three_channels_is_refused(folders, change, message):
    options = {"data": folders(5), "backbone": backbone(5), "augmentations": [view(5)]}
    cfg = config(config(PRETRAIN, **options), **change)
    with pytest.raises(ConfigError, match=message):
        parse_cfg(cfg)


def test_evaluation_refuses_it_too(folders):
    look = {"mean": MEAN, "std": STD, "crop_size": 16}
    options = {"data": {**folders(5), "augmentations": look}, "backbone": backbone(5)}
    parse_linear(config(LINEAR, **options))
    with pytest.raises(ConfigError, match=r"auto_augment is for three channels"):
        parse_linear(config(LINEAR, auto_augment=True, **options))
    options["data"]["format"] = "dali"
    with pytest.raises(ConfigError, match=r"not dali"):
        parse_linear(config(LINEAR, **options))


# ---- files ----


def test_arrays_and_tiffs(tmp_path):
    values = array(3, 5).astype(np.uint16) * 257
    load, decode = readers(channels=5)
    wanted = array(3, 5).transpose(2, 0, 1)
    for name, stored in (("last", values), ("first", values.transpose(2, 0, 1))):
        np.save(tmp_path / f"{name}.npy", stored)
        assert np.array_equal(load(tmp_path / f"{name}.npy"), wanted)
    pages = [Image.fromarray(values[..., c]) for c in range(5)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert np.array_equal(load(tmp_path / "pages.tif"), wanted)
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "one.tif", values, photometric="minisblack", planarconfig="contig")
    encoded = (tmp_path / "one.tif").read_bytes()
    assert np.array_equal(decode(encoded, "one"), wanted)


def test_floats_need_a_range(tmp_path):
    values = array(3, 5).astype(np.float32) / 255
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(ReadError, match=r"x\.npy.*float values.*data\.value_range"):
        readers(channels=5)[0](tmp_path / "x.npy")
    found = readers(channels=5, value_range=[0, 1])[0](tmp_path / "x.npy")
    assert np.array_equal(found, array(3, 5).transpose(2, 0, 1))


def test_other_shapes_and_broken_files_are_named(tmp_path):
    load = readers(channels=5)[0]
    np.save(tmp_path / "four.npy", array(0, 4))
    with pytest.raises(ReadError, match=r"four\.npy.*\(16, 16, 4\).*in_chans=5"):
        load(tmp_path / "four.npy")
    Image.fromarray(array(0, 3)).save(tmp_path / "rgb.png")
    with pytest.raises(ReadError, match=r"rgb\.png.*\(16, 16, 3\).*in_chans=5"):
        load(tmp_path / "rgb.png")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "four.npy").read_bytes()[:200])
    with pytest.raises(ReadError, match=r"cut\.npy"):
        load(tmp_path / "cut.npy")
    with pytest.raises(ReadError, match=r"none\.npy"):
        load(tmp_path / "none.npy")


def test_grey_of_colours_is_pillows(tmp_path):
    Image.fromarray(array(0, 3)).save(tmp_path / "rgb.png")
    wanted = np.asarray(Image.open(tmp_path / "rgb.png").convert("L"))
    assert np.array_equal(readers(channels=1)[0](tmp_path / "rgb.png")[0], wanted)
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    found = readers(channels=1)[0](tmp_path / "deep.png")
    assert np.array_equal(found[0], np.arange(256).reshape(16, 16))


def test_an_rgb_array_is_an_image_like_any_other(tmp_path):
    np.save(tmp_path / "x.npy", array(0, 3))
    for pixels in (False, True):
        load, decode = readers(pixels=pixels)
        for image in (load(tmp_path / "x.npy"), decode((tmp_path / "x.npy").read_bytes(), "x")):
            found = image.numpy().transpose(1, 2, 0) if pixels else np.asarray(image)
            assert np.array_equal(found, array(0, 3))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet18", {"width": 2}),
        ("resnet50", {}),
        ("vit_tiny", {"img_size": 16, "patch_size": 8, "depth": 1}),
        ("convnext_tiny", {}),
        ("mobilenetv3_small_100", {}),
    ],
)
def test_encoders_take_them(name, kwargs):
    cfg = config(PRETRAIN, backbone={"name": name, "kwargs": {**kwargs, "in_chans": 5}})
    cfg.data.dataset = "custom"
    encoder, side = build_encoder(cfg).eval(), 16 if "vit" in name else 64
    assert input_channels(encoder) == 5
    assert encoder(torch.zeros(1, 5, side, side)).ndim == 2
    five, three = (count(net, side).macs_dense for net in (encoder, rgb(cfg)))
    assert five > three


def rgb(cfg):
    cfg.backbone.kwargs.in_chans = 3
    return build_encoder(cfg).eval()


def test_an_onnx_file_takes_them(tmp_path):
    onnx = pytest.importorskip("onnx")
    from sparse_ext.export.onnx import export_onnx

    cfg = config(PRETRAIN, backbone=backbone(5), data={"dataset": "custom"})
    path = export_onnx(build_encoder(cfg), tmp_path / "x.onnx", 32)
    shape = onnx.load(path).graph.input[0].type.tensor_type.shape
    assert [d.dim_value for d in shape.dim][1:] == [5, 32, 32]
