# SPDX-License-Identifier: MIT
"""main_linear: what acts, what is loaded, what is refused."""

import csv
import json
import os

import pytest
import torch
from PIL import Image

from solo.errors import CheckpointError, ConfigError, DataError
from solo.programs.evaluation import load_method
from solo.programs.linear import build_data, build_model, linear, load_backbone
from solo.programs.pretrain import pretrain
from tests.programs.tiny import LINEAR, PRETRAIN, config, run_of


def evaluation(checkpoint, **overrides):
    return config(LINEAR, pretrained_feature_extractor=str(checkpoint), **overrides)


def test_a_run(cwd, pretrained, capsys):
    trainer = linear(evaluation(pretrained[1]))
    run, checkpoint = run_of(cwd, "linear")
    assert checkpoint.name == "tiny-linear-0-ep=0.ckpt"
    args = json.loads((run / "args.json").read_text())
    assert args["pretrained_feature_extractor"] == str(pretrained[1])
    with open(run / "metrics.csv", newline="") as file:
        columns = set(next(csv.reader(file)))
    assert {"train_loss_step", "train_acc1_epoch", "val_loss", "val_acc1", "val_acc5"} <= columns
    source = torch.load(pretrained[1])["state_dict"]
    for key, value in torch.load(checkpoint)["state_dict"].items():
        if key.startswith("backbone."):
            assert torch.equal(value, source[key]), key
    out = capsys.readouterr().out
    assert "loaded all" in out
    assert f"acc@1={float(trainer.callback_metrics['val_acc1'])}" in out


def test_runs_repeat(cwd, pretrained):
    for _ in range(2):
        linear(evaluation(pretrained[1]))
    one, other = (torch.load(run_of(cwd, "linear", v)[1])["state_dict"] for v in "01")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_momentum_encoder_on_request(pretrained):
    from solo.args.linear import parse_cfg

    cfg = parse_cfg(evaluation(pretrained[1], eval_encoder="momentum"))
    source = torch.load(pretrained[1])["state_dict"]
    loaded = load_backbone(cfg).backbone.state_dict()
    assert all(torch.equal(v, source[f"momentum_backbone.{k}"]) for k, v in loaded.items())


def test_a_run_folder_stands_for_its_newest_checkpoint(pretrained):
    from solo.args.linear import parse_cfg

    folder = pretrained[1].parent
    older = folder / "older.ckpt"
    older.write_bytes(b"not read")
    os.utime(older, (0, 0))
    try:
        report = load_backbone(parse_cfg(evaluation(folder)))
    finally:
        older.unlink()
    source = torch.load(pretrained[1])["state_dict"]["backbone.conv1.weight"]
    assert torch.equal(report.backbone.state_dict()["conv1.weight"], source)


@pytest.mark.parametrize("backbone", [None, {"name": "resnet18"}])
def test_the_encoder_is_built_as_its_run_built_it(pretrained, backbone):
    from solo.args.linear import parse_cfg

    cfg = evaluation(pretrained[1])
    del cfg["backbone"], cfg["pretrain_method"]
    if backbone:
        cfg.backbone = backbone
    report = load_backbone(parse_cfg(cfg))
    assert cfg.backbone.kwargs.width == 2  # of the run
    assert cfg.pretrain_method == "mocov2plus"
    source = torch.load(pretrained[1])["state_dict"]["backbone.conv1.weight"]
    assert torch.equal(report.backbone.state_dict()["conv1.weight"], source)


def test_what_the_configuration_says_of_the_encoder_stays(pretrained):
    from solo.args.linear import parse_cfg

    cfg = parse_cfg(
        evaluation(pretrained[1], backbone={"name": "resnet18", "kwargs": {"width": 4}})
    )
    with pytest.raises(CheckpointError, match=r"backbone\.kwargs={.width.: 2}"):
        load_backbone(cfg)
    cfg = parse_cfg(evaluation(pretrained[1], backbone={"name": "resnet50"}))
    assert cfg.backbone.kwargs == {}


def test_fine_tuning_moves_the_encoder(cwd, pretrained):
    linear(evaluation(pretrained[1], finetune=True, mixup=0.8, cutmix=1.0, label_smoothing=0.1))
    source = torch.load(pretrained[1])["state_dict"]["backbone.conv1.weight"]
    tuned = torch.load(run_of(cwd, "linear")[1])["state_dict"]["backbone.conv1.weight"]
    assert not torch.equal(source, tuned)


class Features(torch.nn.Module):
    num_features = 4

    def forward(self, x):
        return x.flatten(1)[:, :4]


def model_of(**overrides):
    from solo.args.linear import parse_cfg

    return build_model(parse_cfg(evaluation("x.ckpt", **overrides)), Features())


@pytest.mark.unit
def test_label_smoothing_acts_without_mixup():
    logits, targets = torch.randn(6, 10), torch.arange(6)
    loss = model_of(label_smoothing=0.3).loss_func(logits, targets)
    expected = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.3)
    torch.testing.assert_close(loss, expected)


@pytest.mark.unit
def test_mixup_makes_soft_targets():
    model = model_of(mixup=0.8, cutmix=1.0, label_smoothing=0.2)
    x, targets = torch.randn(8, 3, 16, 16), torch.arange(8)
    mixed, soft = model.mixup_func(x.clone(), targets)
    assert soft.shape == (8, 10)
    torch.testing.assert_close(soft.sum(1), torch.ones(8))
    assert not torch.equal(mixed, x)
    logits = torch.randn(8, 10)
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model.loss_func(logits, soft), expected)
    with pytest.raises(ConfigError, match="must be even"):
        model_of(mixup=0.8, optimizer__batch_size=7)


@pytest.mark.unit
def test_data_fraction_acts():
    from solo.args.linear import parse_cfg

    sizes = [
        len(build_data(parse_cfg(evaluation("x.ckpt", data__fraction=fraction)))[0].dataset)
        for fraction in (-1, 0.25)
    ]
    assert sizes[1] == pytest.approx(sizes[0] / 4, abs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pretrained_feature_extractor": None}, "name the checkpoint to evaluate"),
        ({"pretrained_feature_extractor": "None"}, "name the checkpoint to evaluate"),
        ({"pretrained_feature_extractor": "absent.ckpt"}, "there is no such checkpoint"),
        ({"backbone__kwargs": {"width": 3}}, "conv1.weight"),
        (
            {"backbone": {"name": "resnet50", "kwargs": {"width": 2}}},
            "trained with backbone.name=resnet18",
        ),
        ({"backbone": {"name": "vit_tiny"}}, "trained with backbone.name=resnet18"),
    ],
)
def test_checkpoints_that_do_not_fit(cwd, pretrained, change, message):
    with pytest.raises(CheckpointError) as error:
        linear(config(evaluation(pretrained[1]), **change))
    assert message in str(error.value)
    assert not list(cwd.iterdir())


def test_truncated_checkpoint(cwd, pretrained):
    (cwd / "t.ckpt").write_bytes(pretrained[1].read_bytes()[:3000])
    with pytest.raises(CheckpointError, match="truncated"):
        linear(evaluation(cwd / "t.ckpt"))
    assert [path.name for path in cwd.iterdir()] == ["t.ckpt"]


def folder_of_images(root, classes, images):
    for name in range(classes):
        (root / str(name)).mkdir(parents=True)
        for index in range(images):
            color = (40 * name, 8 * index, 0)
            Image.new("RGB", (32, 32), color).save(root / str(name) / f"{index}.png")
    return str(root)


def test_folders(cwd, pretrained):
    """Folders train; one class or an empty folder is an error before anything is written."""
    train = folder_of_images(cwd / "train", classes=2, images=8)
    val = folder_of_images(cwd / "val", classes=2, images=2)
    data = {"dataset": "custom", "train_path": train, "val_path": val, "num_workers": 0}
    kwargs = {"optimizer__batch_size": 8, "limit_train_batches": 1}
    checkpoint = cwd / "plain.ckpt"
    state = torch.load(pretrained[1])["state_dict"]
    state = {k: v for k, v in state.items() if k.startswith("backbone.")}
    state["backbone.conv1.weight"] = torch.randn(2, 3, 7, 7)  # stem of large images
    torch.save({"state_dict": state}, checkpoint)
    trainer = linear(evaluation(checkpoint, data=data, **kwargs))
    assert 0 <= float(trainer.callback_metrics["val_acc1"]) <= 100
    (cwd / "none").mkdir()
    with pytest.raises(DataError, match=r"data\.val_path"):
        linear(evaluation(checkpoint, data={**data, "val_path": str(cwd / "none")}, **kwargs))
    one = folder_of_images(cwd / "one", classes=1, images=8)
    with pytest.raises(DataError, match=r"data\.train_path has 1 class"):
        linear(evaluation(checkpoint, data={**data, "train_path": one}, **kwargs))
    data.update(train_path=one, val_path=one)
    with pytest.raises(DataError, match=r"has one class \('0'\): a classifier needs at least two"):
        linear(evaluation(checkpoint, data=data, **kwargs))
    data.update(train_path=train, val_path=val)
    with pytest.raises(ConfigError, match=r"batch_size=32 is larger than .* \(16 images\)"):
        linear(evaluation(checkpoint, data=data, optimizer__batch_size=32))
    assert not (cwd / "trained_models" / "linear" / "1").exists()


@pytest.fixture(scope="module")
def sparse_run(tmp_path_factory):
    """(run folder, checkpoint) of a run that became 50% sparse."""
    pytest.importorskip("sparse_ext.extension").register()
    folder, before = tmp_path_factory.mktemp("sparse"), os.getcwd()
    os.chdir(folder)
    try:
        section = {"name": "synccp", "initial": 0.3, "final": 0.5, "update_period": 1}
        pretrain(config(PRETRAIN, sparse=section, max_epochs=2))
    finally:
        os.chdir(before)
    return run_of(folder)


def zeros(state):
    """Share of zeros in the convolutions of a backbone, without its stem."""
    weights = [
        v
        for k, v in state.items()
        if k.startswith("backbone.layer") and v.ndim == 4 and k.endswith("weight")
    ]
    return sum((w == 0).sum().item() for w in weights) / sum(w.numel() for w in weights)


@pytest.mark.parametrize("finetune", [False, True])
def test_a_sparse_encoder_stays_sparse_and_says_so(cwd, sparse_run, capsys, finetune):
    assert zeros(torch.load(sparse_run[1])["state_dict"]) == pytest.approx(0.5, abs=0.03)
    linear(evaluation(sparse_run[1], finetune=finetune))
    run, checkpoint = run_of(cwd, "linear")
    assert zeros(torch.load(checkpoint)["state_dict"]) == pytest.approx(0.5, abs=0.03)
    assert "sparsity" in capsys.readouterr().out
    with open(run / "metrics.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert float(first["encoder/sparsity"]) == pytest.approx(0.5, abs=0.03)


def test_knn_of_a_sparse_encoder(sparse_run, capsys):
    model = load_method(sparse_run[0])
    assert zeros(model.state_dict()) == pytest.approx(0.5, abs=0.03)
    assert "sparsity" in capsys.readouterr().out


def test_single_images_are_for_frozen_encoders(cwd, pretrained):
    linear(evaluation(pretrained[1], optimizer__batch_size=1))
    with pytest.raises(ConfigError, match=r"optimizer\.batch_size=1: batch norm"):
        linear(evaluation(pretrained[1], optimizer__batch_size=1, finetune=True))
