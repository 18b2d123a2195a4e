# SPDX-License-Identifier: MIT
"""From a folder of images to an encoder and its evaluation, by the recipes for one's own images."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from solo.programs.evaluation import evaluation_loaders
from solo.programs.linear import build_data, held_out, linear
from solo.programs.pretrain import pretrain
from sparse_ext.extension import register
from sparse_ext.report import RunLog, write_report
from sparse_ext.report.embedding import drawn_images
from tests.args.test_own_images import RECIPES
from tests.data.pictures import textured

register()  # whose extension writes the report
SCRIPTS = Path(__file__).parents[2] / "scripts"
QUICK = [
    "max_epochs=1",
    "data.num_workers=0",
    "++enable_progress_bar=False",
    "++enable_model_summary=False",
    "++num_sanity_val_steps=0",
    "accelerator=cpu",
]
WITH_VITS = ("mae", "ijepa", "ibot", "dinov2")


def composed(kind, *overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(SCRIPTS / kind / "custom"), version_base="1.2"):
        return compose("any", [*overrides, *QUICK])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of ten images of several sizes, one of them grey, one of them broken."""
    top = tmp_path_factory.mktemp("own") / "images"
    for label, name in enumerate(("ant", "bee", "cat")):
        (top / name).mkdir(parents=True)
        for index in range(10):
            image = Image.fromarray(textured(20 + index, 24, seed=10 * label + index))
            (image.convert("L") if index == 3 else image).save(top / name / f"{index}.png")
    (top / "bee" / "5.png").write_bytes(b"no image")
    return top


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """Folder of a run of one step."""
    kept = tmp_path_factory.mktemp("runs")
    with pytest.warns(UserWarning, match="1 of .* images in .* are broken"):
        pretrain(
            composed(
                "pretrain",
                "method=simclr",
                f"data.path={folder}",
                "image_size=16",
                "++backbone.kwargs.width=4",
                "optimizer.batch_size=8",
                f"checkpoint.dir={kept}",
            )
        )
    return kept / "simclr" / "0"


def test_a_run_keeps_what_validates(run):
    files = json.loads((run / "validation.json").read_text())["files"]
    assert len(files) == 3
    assert {file.split("/")[0] for file in files} == {"ant", "bee", "cat"}
    args = json.loads((run / "args.json").read_text())
    assert args["data"]["val_fraction"] == 0.1
    assert args["backbone"] == {"name": "resnet18", "small_stem": True, "kwargs": {"width": 4}}
    assert (run / "metrics.csv").read_text().splitlines()[0].count("val_acc1") == 1


def test_a_run_ends_with_its_report(run):
    page = (run / "report.html").read_text()
    assert "<html" in page[:200].lower()
    assert "3 validation images (left)" in page  # what was held out
    assert "Not drawn" not in page


def test_neighbours_of_images_without_labels_are_those_of_training(run, folder, tmp_path):
    args = json.loads((run / "args.json").read_text())
    args["data"] |= {"no_labels": True, "val_fraction": 0.0, "train_path": str(folder / "ant")}
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "args.json").write_text(json.dumps(args))
    log = RunLog(tmp_path / "run")
    dataset, places, _ = drawn_images(log, 500)
    assert places == list(range(10))
    image, label = dataset[3]
    assert (tuple(image.shape), label) == ((3, 16, 16), -1)
    page = write_report(log.folder).read_text()
    assert "6 training images (left)" in page
    assert "Green" not in page


def test_linear_evaluation_needs_the_run_alone(run, folder, tmp_path):
    cfg = composed("linear", f"pretrained_feature_extractor={run}", f"checkpoint.dir={tmp_path}")
    trainer = linear(cfg)
    assert cfg.data.train_path == str(folder)
    train, val = build_data(cfg, None, held_out(cfg))
    files = {Path(file).relative_to(folder).as_posix() for file, _ in val.dataset.samples}
    assert files | {"bee/5.png"} >= set(json.loads((run / "validation.json").read_text())["files"])
    assert not files & {Path(f).relative_to(folder).as_posix() for f, _ in train.dataset.samples}
    assert "val_acc1" in trainer.callback_metrics


def test_neighbours_vote_for_what_was_held_out(run, folder):
    args = Namespace(
        dataset="custom", train_data_path=folder, val_data_path=None, data_format="image_folder",
        data_fraction=-1.0, value_range=None, data_exif=None, no_labels=False, batch_size=4,
        num_workers=0, pretrained_checkpoint_dir=run,
    )  # fmt: skip
    train, val = evaluation_loaders(args)
    assert (len(train.dataset), len(val.dataset)) == (27, 3)


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("method", [name for name in RECIPES if name != "distill"])
def test_a_step_of_every_method(method, labelled, tmp_path):
    if not labelled and method in ("supcon", "supervised", "s4l"):
        pytest.skip("learns from labels")
    for index in range(48):
        path = tmp_path / "images" / ("ab"[index % 2] if labelled else "") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(textured(32, 32, seed=index)).save(path)
    small = [] if method in WITH_VITS else ["++backbone.kwargs.width=8"]
    trainer = pretrain(
        composed(
            "pretrain",
            f"method={method}",
            f"data.path={tmp_path / 'images'}",
            "image_size=32",
            f"checkpoint.dir={tmp_path}",
            "++max_steps=1",
            *small,
        )
    )
    assert trainer.global_step == 1
    state = trainer.model.state_dict()
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())
