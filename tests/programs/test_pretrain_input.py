# SPDX-License-Identifier: MIT
"""The pretraining program on what it cannot train on: named errors, and images of one's own."""

import pytest

from solo.errors import ConfigError, DataError
from solo.programs.pretrain import pretrain
from tests.programs.test_pretrain import rows
from tests.programs.tiny import AUGMENTATION, PRETRAIN, config


def custom(folder, **overrides):
    data = {"dataset": "custom", "train_path": str(folder), "num_workers": 0, **overrides}
    return config(PRETRAIN, data=data)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"method": "mocov2pls"},
            ConfigError,
            "'method=mocov2pls' is unknown. Did you mean 'mocov2plus'",
        ),
        ({"backbone__name": "resnet81"}, ConfigError, "Did you mean 'resnet18'"),
        ({"backbone__kwargs": {"widht": 3}}, ConfigError, "width"),
        ({"method_kwargs__temperatur": 1}, ConfigError, "temperature"),
        ({"augmentations": [{**AUGMENTATION, "num_crops": 3}]}, ConfigError, "needs 2 large crops"),
        ({"optimizer__batch_size": 10**6}, ConfigError, "larger than the training set"),
        ({"max_epochs": "many"}, ConfigError, "'max_epochs' must be an integer"),
        ({"max_epochs": None}, ConfigError, "max_epochs"),
        ({"optimizer__kwargs": {"nesterv": True}}, ConfigError, "Did you mean 'nesterov'"),
        ({"optimizer__batch_size": 0}, ConfigError, "'optimizer.batch_size=0' is out of range"),
        ({"optimizer__lr": float("nan")}, ConfigError, "'optimizer.lr=nan' is out of range"),
        ({"max_epochs": 0}, ConfigError, "it must be at least 1"),
        ({"checkpoint__frequency": 0}, ConfigError, "'checkpoint.frequency=0' is out of range"),
        ({"data__num_workers": -1}, ConfigError, "'data.num_workers=-1' is out of range"),
        ({"method_kwargs__proj_hidden_dim": 0}, ConfigError, "needs at least 1"),
        ({"devices": []}, ConfigError, "'devices' is an empty list"),
        ({"name": "a/b"}, ConfigError, "leave out the slashes"),
    ],
)
def test_bad_configuration(cwd, change, kind, message):
    with pytest.raises(kind) as error:
        pretrain(config(PRETRAIN, **change))
    assert message in str(error.value)
    assert not list(cwd.iterdir())


def test_a_checkpoint_folder_that_cannot_be_made(cwd):
    (cwd / "file").write_text("")
    with pytest.raises(ConfigError, match=r"checkpoint\.dir: the folder 'file/mocov2plus' cannot"):
        pretrain(config(PRETRAIN, checkpoint__dir="file"))


def test_images_of_another_size_than_the_encoder(cwd):
    backbone = {"name": "vit_tiny", "kwargs": {"img_size": 64}}
    with pytest.raises(ConfigError, match=r"\(32\) doesn't match model \(64\)\. Set backbone"):
        pretrain(config(PRETRAIN, backbone=backbone))


def test_missing_and_empty_folders(cwd):
    with pytest.raises(DataError, match="there is no folder"):
        pretrain(custom(cwd / "absent"))
    (cwd / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        pretrain(custom(cwd / "empty"))
    assert [path.name for path in cwd.iterdir()] == ["empty"]


def test_unlabelled_images(cwd):
    from PIL import Image

    (cwd / "images").mkdir()
    for index in range(32):
        Image.new("RGB", (40, 40), (index * 8, 0, 0)).save(cwd / "images" / f"{index}.png")
    trainer = pretrain(custom(cwd / "images", no_labels=True))
    assert trainer.global_step == 2
    (row, *_) = rows(cwd / "trained_models" / "mocov2plus" / "0" / "metrics.csv")
    assert "train_nce_loss_step" in row
    assert not [key for key in row if "acc1" in key or "val" in key]


def test_debug_augmentations_prints_the_pipeline(cwd, capsys):
    pretrain(config(PRETRAIN, debug_augmentations=True, limit_train_batches=1))
    assert "2 x [Compose" in capsys.readouterr().out


def test_validation_later_than_the_epoch_ends(cwd):
    for wrong in (5, 1.5):
        with pytest.raises(ConfigError, match=r"val_check_interval"):
            pretrain(config(PRETRAIN, val_check_interval=wrong))
        assert not list(cwd.iterdir())
    assert pretrain(config(PRETRAIN, val_check_interval=0.5)).global_step == 2


@pytest.mark.parametrize("method", ["mocov2plus", "vicreg"])
def test_batch_norm_of_single_images_is_refused(cwd, method):
    kwargs = {"proj_hidden_dim": 16, "proj_output_dim": 8}
    options = {"method": method, "optimizer__batch_size": 1}
    options |= {"method_kwargs": kwargs} if method == "vicreg" else {}
    with pytest.raises(ConfigError, match=r"optimizer\.batch_size=1: batch norm \(BatchNorm"):
        pretrain(config(PRETRAIN, **options))
    assert not list(cwd.iterdir())


def test_single_images_without_batch_norm(cwd):
    kwargs = {"img_size": 32, "patch_size": 16, "depth": 1, "embed_dim": 12, "num_heads": 3}
    options = {"backbone": {"name": "vit_tiny", "kwargs": kwargs}, "optimizer__batch_size": 1}
    assert pretrain(config(PRETRAIN, **options)).global_step == 2
