# SPDX-License-Identifier: MIT
"""Runs on resident data: resumed like any other, same methods, named mistakes."""

import pytest
import torch
from PIL import Image

from solo.args.linear import parse_cfg as parse_linear
from solo.args.pretrain import parse_cfg
from solo.data.datasets.images import ReadError
from solo.errors import ConfigError, DataError
from solo.programs import training
from solo.programs.pretrain import build_data, pretrain
from tests.programs.test_pretrain import Die, rows, same_state
from tests.programs.test_processes import folder_with, start
from tests.programs.tiny import AUGMENTATION, LINEAR, PRETRAIN, config, run_of

SMALL = {**AUGMENTATION, "crop_size": 16}


def resident(**overrides):
    options = {"data__format": "resident", "augmentations": [SMALL], **overrides}
    return config(PRETRAIN, **options)


def images_in(folder, n=32):
    for index in range(n):
        (folder / f"c{index % 2}").mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (20, 20), (index * 8, 0, 0))
        image.save(folder / f"c{index % 2}" / f"{index}.png")
    return {"dataset": "custom", "train_path": str(folder), "num_workers": 0}


def test_a_killed_run_resumes_to_the_same_bits(cwd, monkeypatch):
    options = {"max_epochs": 3, "auto_resume": {"enabled": True}, "limit_train_batches": 3}
    options["checkpoint"] = {"enabled": True, "dir": "straight/trained_models"}
    pretrain(resident(**options))
    _, straight = run_of(cwd / "straight")

    options["checkpoint"] = {"enabled": True, "dir": "killed/trained_models"}
    own = training._own_callbacks
    monkeypatch.setattr(training, "_own_callbacks", lambda *args: [*own(*args), Die(1)])
    with pytest.raises(MemoryError):
        pretrain(resident(**options))
    monkeypatch.setattr(training, "_own_callbacks", own)
    pretrain(resident(**options))
    run, resumed = run_of(cwd / "killed")
    assert same_state(straight, resumed)
    assert rows(run / "metrics.csv") == rows(straight.parent / "metrics.csv")


@pytest.mark.parametrize(
    ("method", "kwargs"),
    [
        ("npid", {"proj_output_dim": 8, "temperature": 0.07, "nce_k": 8, "bank_momentum": 0.5}),
        (
            "deepclusterv2",
            {
                "proj_hidden_dim": 8,
                "proj_output_dim": 8,
                "temperature": 0.1,
                "num_prototypes": [4],
                "kmeans_iters": 2,
            },
        ),
    ],
)
def test_methods_that_know_the_data_set(cwd, method, kwargs):
    changes = {"method": method, "method_kwargs": kwargs, "max_epochs": 2}
    trainer = pretrain(resident(data={**images_in(cwd / "d"), "format": "resident"}, **changes))
    assert trainer.global_step == 4


def test_images_without_labels_and_without_validation(cwd):
    images_in(cwd / "d")
    (cwd / "flat").mkdir()
    for path in (cwd / "d").rglob("*.png"):
        path.rename(cwd / "flat" / path.name)
    data = {"dataset": "custom", "train_path": str(cwd / "flat"), "no_labels": True}
    assert pretrain(resident(data={**data, "format": "resident"})).global_step == 2


def test_folder_with_validation(cwd):
    data = images_in(cwd / "d")
    options = {"val_path": str(cwd / "d"), "format": "resident", "resident_size": 18}
    module = build_data(parse_cfg(resident(data={**data, **options})))
    assert module.dataset.images.shape == (32, 3, 18, 18)
    assert len(module.val_dataloader().dataset) == 32


def test_compiler_that_fails_does_not_stop_the_run(cwd, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match=r"performance.compile: .*no compiler"):
        trainer = pretrain(resident(performance={"compile": True}))
    assert trainer.global_step == 2


def test_broken_files(cwd):
    data = images_in(cwd / "d")
    (cwd / "d" / "c0" / "4.png").write_text("text")
    with pytest.raises(DataError, match=r"1 of 32 images .*skip_unreadable=True"):
        pretrain(resident(data={**data, "format": "resident"}))
    with pytest.raises(ReadError, match=r"4.png': not an image.*data.skip_unreadable=True"):
        pretrain(config(PRETRAIN, data=data))
    for kind in ("resident", "image_folder"):
        with pytest.warns(UserWarning, match=r"1 of 32 images"):
            made = build_data(
                parse_cfg(config(PRETRAIN, data={**data, "format": kind, "skip_unreadable": True}))
            )
        assert len((made[0] if isinstance(made, tuple) else made).dataset) == 31


def test_mistakes_are_named(cwd):
    with pytest.raises(ConfigError, match=r"'data.format' must be one of"):
        parse_linear(config(LINEAR, data__format="resident"))
    with pytest.raises(ConfigError, match=r"larger than the training set"):
        pretrain(resident(optimizer__batch_size=10**6))


def test_debug_augmentations_prints_the_views(cwd, capsys):
    build_data(parse_cfg(resident(debug_augmentations=True)))
    assert "ColorJitter" in capsys.readouterr().out


@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_share_one_run(tmp_path):
    options = {"devices": [0, 1], "strategy": "ddp", "limit_train_batches": 1.0}
    folder = folder_with(tmp_path / "two", data__format="resident", **options)
    assert start(folder).wait() == 0, (folder / "output.txt").read_text()
    _, checkpoint = run_of(folder)
    assert torch.load(checkpoint)["global_step"] == 1437 // 16  # half of the 2,874 images
