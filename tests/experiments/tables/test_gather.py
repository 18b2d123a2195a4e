# SPDX-License-Identifier: MIT
"""Finished runs beside the paper's figures: what is measured, what is said, what is labelled."""

import csv
import json

import pytest

from scripts.experiments.tables import gather, images, runs, write
from scripts.experiments.tables.__main__ import main
from scripts.experiments.tables.rows import rows, title
from solo.errors import DataError
from sparse_ext.report import RunLog

pytestmark = pytest.mark.unit


def write_metrics(folder, rows):
    folder.mkdir(parents=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def finished(options, row, accuracy, epochs=2, width=4, keep=10):
    """What a run of a row and its linear evaluation leave; every `keep`-th weight is kept."""
    import torch
    from omegaconf import OmegaConf

    from solo.backbones import build_encoder
    from sparse_ext.extension import register

    register()
    args = {
        **{"name": f"table4-{row.name}", "method": "byol", "max_epochs": epochs, "momentum": {}},
        **{"backbone": {"name": "resnet18", "kwargs": {"width": width}}, "devices": [0]},
        **{"data": {"dataset": "cifar10"}, "optimizer": {"batch_size": 64}},
    }
    if row.method:
        args["sparse"] = {"name": "synccp", "final": 0.9}
    backbone = build_encoder(OmegaConf.create(args))
    state = {f"momentum_backbone.{k}": v.clone() for k, v in backbone.state_dict().items()}
    for layer in backbone.modules():
        if hasattr(layer, "mask"):
            layer.mask.view(-1)[torch.arange(layer.mask.numel()) % keep > 0] = False
            layer.apply_mask()
    state |= {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    run = runs.training_folder(row, options) / "byol" / "0"
    steps = [{"epoch": e, "step": 78 * e + 77, "val_acc1": 30.0 + e} for e in range(epochs)]
    write_metrics(run, steps)
    (run / "args.json").write_text(json.dumps(args))
    counted = {"cost": {"steps": 10, "sums": [4.0, 8.0]}} if row.method else {}
    torch.save({"state_dict": state, "sparse_state": counted}, run / "x.ckpt")
    linear = runs.linear_folder(row, options) / "linear" / "0"
    write_metrics(linear, [{"epoch": 0, "step": 4, "val_acc1": v} for v in (1.0, accuracy)])


@pytest.fixture(scope="module")
def gathered(tmp_path_factory):
    options = runs.Options(tmp_path_factory.mktemp("t") / "table4-cifar10-small")
    known = rows("table4", "cifar10", "small")
    finished(options, known["byol-synccp-90"], 61.25)
    finished(options, known["byol-dense"], 63.5)
    return options, gather.collect(list(known.values()), options)


def test_figures_are_measured_and_stand_beside_the_papers(gathered):
    found = {row["row"]: row for row in gathered[1]}
    sparse, dense = found["byol-synccp-90"], found["byol-dense"]
    assert (sparse["acc"], sparse["paper_acc"], sparse["paper_acc_std"]) == (61.25, 92.03, 0.05)
    assert sparse["sparsity_online"] == pytest.approx(0.9, abs=2e-3)
    assert sparse["sparsity_online_whole_encoder"] < sparse["sparsity_online"]
    assert sparse["sparsity_momentum"] == 0  # its masks are all ones
    assert sparse["macs_effective"] < 0.2 * sparse["macs_dense"]
    assert sparse["training_cost_A"] == pytest.approx((3 * 0.4 + 0.8) / 4)
    assert sparse["training_cost_C"] == pytest.approx(0.6)
    assert sparse["megabytes"] < sparse["megabytes_with_index"] < dense["megabytes"]
    assert dense["macs_effective"] == dense["macs_dense"] == sparse["macs_dense"]
    assert dense["training_cost_A"] == dense["training_cost_B"] == 1
    assert found["byol-sd-90"] == {
        **{"row": "byol-sd-90", "method": "sd", "label": "not run"},
        **{"paper_acc": 87.38, "paper_acc_std": 0.04},
    }


def test_a_smaller_run_is_labelled_with_what_differs(gathered):
    label = gathered[1][0]["label"]
    assert label == (
        "small-scale run: 2 epochs instead of 1000, width 4 instead of 64, "
        "4,992 of 50,000 training images"
    )


def test_a_run_of_the_papers_size_has_no_label(tmp_path):
    row = rows("table4", "cifar10")["byol-dense"]
    write_metrics(tmp_path / "r", [{"epoch": 0, "step": 194, "val_acc1": 1.0}])
    args = {"max_epochs": 1000, "backbone": {"name": "resnet18"}, "devices": [0]}
    (tmp_path / "r" / "args.json").write_text(
        json.dumps(args | {"optimizer": {"batch_size": 128}, "accumulate_grad_batches": 2})
    )
    log = RunLog(tmp_path / "r")
    assert gather.images_per_epoch(log) == 195 * 256
    assert gather.label(row, log) == ""


def test_one_table_in_four_forms(gathered, tmp_path):
    figures = gathered[1]
    paths = write.write(title("table4"), figures, tmp_path / "out", write.NOTES["sparse"])
    text = paths["txt"].read_text()
    line = next(line for line in text.splitlines() if line.startswith("byol-synccp-90"))
    for shown in ("61.25", "92.03 ±0.05", "90.0%", "0.500", "0.600"):
        assert shown in line
    assert "small-scale run: 2 epochs instead of 1000" in text
    assert "byol-granet-90, byol-sd-90: not run." in text
    assert "No measured speed" in text
    stored = json.loads(paths["json"].read_text())
    assert [row["row"] for row in stored["rows"]] == [row["row"] for row in figures]
    assert stored["rows"][0]["macs_dense"] == figures[0]["macs_dense"]
    with open(paths["csv"], newline="") as file:
        table = list(csv.DictReader(file))
    assert (table[0]["acc"], table[0]["paper_acc"], table[3]["acc"]) == ("61.25", "92.03", "63.5")
    html = paths["html"].read_text()
    assert "<td>92.03 ±0.05</td>" in html
    assert "Online accuracy" in html
    assert "byol-granet-90, byol-sd-90: not run." in html


def test_the_summary_command(gathered, capsys):
    folder = gathered[0].folder.parent
    words = ["cifar10", "table4", "--scale", "small", "--summary", "--output", str(folder)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "61.25" in out
    assert f"html: {gathered[0].folder / 'summary.html'}" in out


# ---- images ----


def some_images(folder, each=4):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for i in range(each):
                (folder / part / name / f"{i}.png").write_bytes(b"x")
    return folder


def test_a_subset_has_the_first_images_of_every_class(tmp_path):
    source = images.require(some_images(tmp_path / "all"))
    part = images.subset(source, tmp_path / "part", 6)
    assert images.subset(source, tmp_path / "part", 6) == part  # made once
    for name in ("cat", "dog"):
        assert [p.name for p in sorted((part / "train" / name).iterdir())] == [
            "0.png", "1.png", "2.png"
        ]  # fmt: skip
    assert len(list((part / "val").glob("*/*"))) == 8
    with pytest.raises(DataError, match="has 4 images, 5 are needed"):
        images.subset(source, tmp_path / "more", 10)
    with pytest.raises(DataError, match="holds no <class>/<image>"):
        images.require(tmp_path / "all" / "train")
