# SPDX-License-Identifier: MIT
"""The line of an epoch, the first lines of a run, the last ones, and results.json."""

import csv
import json
import re

import pytest
import torch

from solo.files.results import read_results
from solo.monitoring.loggers import CSVMetrics
from solo.programs.epoch_lines import EpochLines, figures
from solo.programs.linear import linear
from solo.programs.pretrain import pretrain
from sparse_ext import extension
from tests.programs.tiny import LINEAR, PRETRAIN, config, run_of

pytestmark = pytest.mark.unit
SPARSE = {"name": "synccp", "final": 0.8, "update_period": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder and output of three epochs of a sparse run, with validation in the last two."""
    import contextlib
    import io
    import os

    extension.register()
    folder, before = tmp_path_factory.mktemp("lines"), os.getcwd()
    os.chdir(folder)
    said = io.StringIO()
    cfg = config(
        PRETRAIN, sparse=SPARSE, max_epochs=3, knn_eval={"enabled": True}, limit_train_batches=4
    )
    try:
        with contextlib.redirect_stdout(said):
            pretrain(cfg)
    finally:
        os.chdir(before)
    return folder / "trained_models" / "mocov2plus" / "0", said.getvalue()


def last_row(folder, column):
    with open(folder / "metrics.csv", newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)][-1]


def test_a_line_per_epoch_with_what_was_logged(run):
    folder, said = run
    lines = [line for line in said.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == [f"epoch {k} of 3" for k in (1, 2, 3)]
    sparsity = [
        100 * last_row(folder, f"sparse/{name}_sparsity") for name in ("online", "momentum")
    ]
    for part in (
        f"nce loss {last_row(folder, 'train_nce_loss_epoch'):.4g}",
        f"accuracy {last_row(folder, 'val_acc1'):.2f}%",
        f"kNN {last_row(folder, 'val_knn_acc1'):.2f}%",
        f"sparsity online {sparsity[0]:.1f}% / momentum {sparsity[1]:.1f}%",
    ):
        assert part in lines[-1]
    assert re.search(r"\d images/s, \d+ s left$", lines[0])
    assert "left" not in lines[-1]


def test_the_first_lines_and_the_last(run):
    _, said = run
    lines = said.splitlines()
    assert re.match(r"mocov2plus: resnet18, [\d.]+ k parameters .* on cpu, seed 5$", lines[0])
    assert re.match(r"digits: [\d,]+ images, 4 batches of 16 in an epoch; epochs 1 to 3$", lines[1])
    end = said[said.index("Done: 3 epochs in ") :]
    assert "trained_models/mocov2plus/0/tiny-0-ep=2.ckpt" in end
    assert "python3 main_knn.py --dataset digits --pretrained_checkpoint_dir trained_models" in end
    assert "python3 -m sparse_ext.report trained_models/mocov2plus/0" in end


def test_results_hold_the_figures_of_the_last_epoch(run):
    folder, _ = run
    found = read_results(folder)["run"]
    assert found["program"] == "pretrain"
    assert (found["epochs"], found["steps"], found["max_epochs"]) == (3, 12, 3)
    assert found["seconds"] > 0
    for name, column in (
        ("train_nce_loss", "train_nce_loss_epoch"),
        ("val_acc1", "val_acc1"),
        ("sparse/online_sparsity", "sparse/online_sparsity"),
    ):
        assert found["metrics"][name] == pytest.approx(last_row(folder, column))
    assert not any("/layer_" in name for name in found["metrics"])


def test_nothing_irrelevant_is_said(tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    cfg = config(PRETRAIN)
    del cfg["enable_model_summary"]
    pretrain(cfg)
    both = "".join(capfd.readouterr())
    for noise in ("TPU", "GPU available", "Loading `train", "Tip", "FLOPs", "Seed set", "stopped:"):
        assert noise not in both
    assert [str(w.message) for w in recwarn if "LeafSpec" in str(w.message)] == []


def test_a_linear_evaluation_tells_the_run_that_it_evaluated(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder, _ = run
    linear(config(LINEAR, pretrained_feature_extractor=str(folder)))
    own = tmp_path / "trained_models" / "linear" / "0"
    found = read_results(own)["run"]
    assert found["program"] == "linear"
    assert found["encoder_figures"]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    (entry,) = read_results(folder)["linear"]
    assert entry["acc1"] == pytest.approx(last_row(own, "val_acc1"))
    assert (entry["encoder"], entry["finetune"], entry["dataset"]) == ("online", False, "digits")
    assert (
        f"results     {own.relative_to(tmp_path)}/results.json".split()[1]
        in capsys.readouterr().out
    )


def test_a_run_that_goes_on_has_taken_as_long_as_its_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretrain(config(PRETRAIN, max_epochs=1))
    folder, checkpoint = run_of(tmp_path)
    path = folder / "results.json"
    stored = json.loads(path.read_text())
    stored["run"]["seconds"] = 1000.0
    path.write_text(json.dumps(stored))
    pretrain(config(PRETRAIN, max_epochs=2, resume_from_checkpoint=str(checkpoint)))
    assert 1000 < read_results(folder)["run"]["seconds"] < 1100
    assert read_results(folder)["run"]["epochs"] == 2


def test_figures_without_labels_and_without_validation():
    assert figures({"train_neg_cos_sim": -0.912345}) == ["neg cos sim -0.9123"]
    assert figures({"train_loss": 2.0, "train_acc1": 31.5}) == [
        "loss 2",
        "training accuracy 31.50%",
    ]
    stale = {"train_nce_loss": 1.0, "val_acc1": 30.0}
    assert figures(stale, validated=False) == ["nce loss 1"]


class Slow:
    """What a line of the time left asks a trainer for."""

    is_global_zero, world_size, global_step, should_stop = True, 1, 0, False
    num_training_batches, max_epochs, current_epoch, train_dataloader = 100, 30, 0, None


@pytest.mark.parametrize(("seconds", "said"), [(0.5, ""), (2.0, "time: 2 s per batch, 3 min 20 s")])
def test_a_long_run_says_early_how_long_it_will_take(tmp_path, capsys, seconds, said):
    now = iter(seconds * n for n in range(1000))
    lines = EpochLines(None, CSVMetrics(tmp_path / "metrics.csv"), clock=lambda: next(now))
    for _ in range(20):
        lines.on_train_batch_end(Slow(), None, None, (torch.zeros(4),), 0)
    out = capsys.readouterr().out
    assert out.startswith(said)
    assert bool(out) is bool(said)
    if said:  # 2 s for each of 30 x 100 batches but the ten that are over
        assert "per epoch, about 1 h 39 min left" in out
