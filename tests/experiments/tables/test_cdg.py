# SPDX-License-Identifier: MIT
"""Tables of CDG: every row composes for its training and its evaluations; figures; a summary."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from scripts.experiments.tables import gather, programs, runs, write
from scripts.experiments.tables.rows import rows, title
from sparse_ext.extension import register
from sparse_ext.gating.methods.spatial.paths import reduction
from tests.experiments.tables.test_gather import write_metrics
from tests.experiments.tables.test_rows import ROOT, composed
from tests.gating.helpers import gated_encoder

pytestmark = pytest.mark.unit

DATASETS = {
    "cifar10": (1, 2, 3, 5, 6, 7),
    "cifar100": (4, 5),
    "imagenet100": (4, 5),
}
EVERY = [(f"cdg_table{i}", d, "paper") for d, tables in DATASETS.items() for i in tables]
EVERY.append(("cdg_table6", "cifar10", "small"))


def evaluations(row, tmp_path):
    """What each evaluation of a row reads."""
    from solo.args import linear

    found = {}
    options = runs.Options(tmp_path / "out", tmp_path)
    for job, one in zip(programs.jobs([row], options)[1:], row.evaluations, strict=True):
        words = [str(part) for part in job.command()]
        start = words.index("--config-name")
        with initialize_config_dir(words[words.index("--config-path") + 1], version_base="1.2"):
            cfg = compose(words[start + 1], overrides=words[start + 2 :])
        OmegaConf.set_struct(cfg, False)
        linear.parse_cfg(cfg)
        found[one.name] = cfg
    return found


@pytest.mark.parametrize(("table", "dataset", "scale"), EVERY, ids=map("-".join, EVERY))
def test_every_row_is_a_valid_configuration(table, dataset, scale, tmp_path):
    register()
    script = ROOT / "scripts" / "gating" / dataset / f"{table}.sh"
    assert f"{dataset} {table}" in script.read_text()
    for row in rows(table, dataset, scale).values():
        assert row.paper
        assert all(key.removeprefix("finetuned_") in (*gather.GATES, "acc") for key in row.paper)
        cfg, section = composed(row, tmp_path)
        assert (section.name if section else None) == row.method
        kwargs = cfg.backbone.get("kwargs") or {}
        if scale == "paper":
            assert cfg.max_epochs == row.expected["epochs"]
            assert kwargs.get("width", 64) == row.expected.get("width", 64)
        for name, one in evaluations(row, tmp_path).items():
            assert (one.backbone.get("kwargs") or {}).get("width") == kwargs.get("width")
            assert (one.get("finetune", False), one.data.fraction) == (
                (True, 0.5) if name == "finetuned" else (False, -1)
            )


def test_settings_of_section_9_6(tmp_path):
    register()
    cfg, section = composed(rows("cdg_table6", "cifar10")["cdg"], tmp_path)
    assert (section.groups, section.alpha, section.lamb, section.target) == (4, 2.0, 1e-4, 0.6)
    assert (section.split, section.overlap, section.structured) == ("view", 0, False)
    assert (cfg.method, cfg.optimizer.name, cfg.augmentations[0].gaussian_blur.prob) == (
        *("simclr", "lars"),
        0,
    )
    cfg, section = composed(rows("cdg_table7", "cifar10")["mocov2plus-cdg"], tmp_path)
    assert (cfg.method, section.split) == ("mocov2plus", "encoder")
    _, section = composed(rows("cdg_table4", "imagenet100")["cdg-2x"], tmp_path)
    assert section.target == 0
    _, section = composed(rows("cdg_table1", "cifar10")["unified"], tmp_path)
    assert (section.unified, section.overlap) == (True, 100)
    two = rows("cdg_table2", "cifar10").values()
    overlaps = [composed(row, tmp_path)[1].overlap for row in two if row.method]
    assert overlaps == [100, 75, 50, 0]
    assert composed(rows("cdg_table5", "cifar100")["structured"], tmp_path)[1].structured


def test_figures_are_those_that_the_paper_prints():
    three = rows("cdg_table3", "cifar10")
    assert [row.paper["acc"] for row in three.values()] == [88.67, 88.59, 88.03]
    assert three["groups-8"].paper["times_fewer_macs_gated"] == 1.83
    for groups, name in ((2, "groups-2"), (4, "groups-4")):  # Eq. 13 agrees with what is printed
        printed = three[name].paper
        assert reduction(groups, printed["eta"] / 100) == pytest.approx(
            printed["times_fewer_macs_gated"], abs=6e-3
        )
    assert rows("cdg_table4", "imagenet100")["cdg-2x"].paper["finetuned_acc"] == 80.06
    assert rows("cdg_table5", "cifar100")["structured"].paper["finetuned_eta"] == 66.24
    six = rows("cdg_table6", "cifar10")
    assert six["dgc"].paper == {"acc": 73.1, "finetuned_acc": 81.77, "times_fewer_macs_gated": 2.11}
    assert rows("cdg_table7", "cifar10")["simsiam-fbs"].paper["acc"] == 88.21


def test_a_summary_has_both_evaluations_and_the_papers_figures(tmp_path):
    options = runs.Options(tmp_path)
    known = rows("cdg_table6", "cifar10", "small")
    row = known["cdg"]
    train = runs.training_folder(row, options) / "simclr" / "0"
    write_metrics(train, [{"epoch": 0, "step": 38, "val_acc1": 30.0}])
    args = {"max_epochs": 1, "backbone": {"name": "resnet18", "kwargs": {"width": 4}}}
    (train / "args.json").write_text(json.dumps({**args, "data": {"dataset": "cifar10"}}))
    state = {f"backbone.{key}": value for key, value in gated_encoder("cdg").state_dict().items()}
    torch.save({"state_dict": state}, train / "a.ckpt")
    for name, acc, eta in (("online", 61.5, 0.7), ("finetuned", 64.25, 0.65)):
        gates = {"eta": eta, "times_fewer_macs_gated": reduction(4, eta), "times_fewer_macs": 2.0}
        gates["flops_reduction"] = 0.5
        folder = runs.linear_folder(row, options, name) / "linear" / "0"
        figures = {f"encoder/{key}": value for key, value in gates.items()}
        write_metrics(folder, [{"epoch": 0, "step": 4, "val_acc1": acc, **figures}])
    found = gather.collect(list(known.values()), options)
    (cdg,) = (one for one in found if one["row"] == "cdg")
    assert (cdg["acc"], cdg["finetuned_acc"], cdg["paper_finetuned_acc"]) == (61.5, 64.25, 90.74)
    assert (cdg["eta"], cdg["finetuned_eta"]) == (0.7, 0.65)
    text = write.text(title("cdg_table6"), found, write.NOTES["gating"])
    line = next(line for line in text.splitlines() if line.startswith("cdg "))
    for shown in ("61.50", "88.84", "64.25", "90.74", "70.0%", "65.0%", "2.11", "2.12", "50.00%"):
        assert shown in line, shown
    assert "dgc, cgnet, fbs, dense: not run" in text
    assert "counted, not timed" in text
