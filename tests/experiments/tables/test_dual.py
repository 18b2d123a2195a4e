# SPDX-License-Identifier: MIT
"""Tables of VICReg-Dual: every row composes, evaluations name their branch, seeds are averaged."""

import json
import statistics

import pytest
import torch
from omegaconf import OmegaConf

from scripts.experiments.tables import gather, programs, runs, write
from scripts.experiments.tables.__main__ import main
from scripts.experiments.tables.rows import Evaluation, rows, title
from solo.backbones import build_encoder
from solo.errors import ConfigError, DataError
from sparse_ext.gating.config.sections import build
from sparse_ext.gating.encoder import patch
from tests.experiments.tables.test_gather import write_metrics
from tests.experiments.tables.test_rows import ROOT, composed

pytestmark = pytest.mark.unit

DATASETS = {
    "dual_table1": ("cifar10", "cifar100", "stl10", "imagenet100"),
    "dual_table2": ("cifar10", "cifar100", "stl10", "imagenet100"),
    **{f"dual_table{i}": ("cifar100", "stl10") for i in (3, 4, 5, 6)},
}
EVERY = [(table, dataset) for table, datasets in DATASETS.items() for dataset in datasets]


@pytest.mark.parametrize(("table", "dataset"), EVERY, ids=map("-".join, EVERY))
def test_every_row_is_a_valid_configuration(table, dataset, tmp_path):
    from sparse_ext.extension import register

    register()
    script = ROOT / "scripts" / "gating" / dataset / f"{table}.sh"
    assert f"{dataset} {table}" in script.read_text()
    for name, row in rows(table, dataset).items():
        assert row.paper
        assert row.section == "gating"
        if name.endswith(("20", "40")):  # like the others but for the number
            continue
        cfg, section = composed(row, tmp_path)
        if row.kind == "ssl":
            assert (section is None) == (row.method is None)
            assert section is None or section.name == row.method
            assert cfg.max_epochs == 500
            assert (cfg.data.dataset, cfg.backbone.name) == (dataset, "resnet18")
        else:
            assert (row.kind, row.recipe != "") == ("evaluation", True)


def test_settings_are_those_of_section_11_5(tmp_path):
    """Values of the specification, written out once more."""
    from sparse_ext.extension import register

    register()
    cfg, section = composed(rows("dual_table1", "cifar10")["dual-30"], tmp_path)
    assert (cfg.method, cfg.optimizer.name, cfg.optimizer.batch_size) == ("vicreg", "lars", 256)
    assert (cfg.optimizer.lr_as_written, cfg.optimizer.lr) == (0.3, 0.6)  # two GPUs
    assert (cfg.optimizer.weight_decay, cfg.optimizer.kwargs.eta) == (1e-4, 0.02)
    assert (cfg.scheduler.warmup_epochs, cfg.scheduler.warmup_start_lr) == (10, 0.003)
    kwargs = cfg.method_kwargs
    weights = (kwargs.sim_loss_weight, kwargs.var_loss_weight, kwargs.cov_loss_weight)
    assert weights == (25, 25, 1)
    assert (kwargs.proj_hidden_dim, kwargs.proj_output_dim) == (2048, 2048)
    assert (section.budget, section.separate_bn, section.encoders) == (0.3, True, 1)
    (views,) = cfg.augmentations
    assert (views.rrc.crop_min_scale, views.solarization.prob) == (0.2, 0.1)
    assert (views.gaussian_blur.prob, views.num_crops, views.crop_size) == (0, 2, 32)
    cfg, _ = composed(rows("dual_table1", "stl10")["gating-10"], tmp_path)
    assert (cfg.data.no_labels, cfg.augmentations[0].crop_size) == (True, 96)
    cfg, _ = composed(rows("dual_table1", "imagenet100")["dual-50"], tmp_path)
    assert (cfg.data.format, cfg.augmentations[0].crop_size) == ("dali", 224)
    cfg, section = composed(rows("dual_table3", "cifar100")["barlow-10"], tmp_path)
    assert (cfg.method, section.name, section.budget) == ("barlow_twins", "vicreg_dual", 0.1)
    _, section = composed(rows("dual_table4", "stl10")["two-encoders-40"], tmp_path)
    assert (section.encoders, section.budget) == (2, 0.4)
    cfg, _ = composed(rows("dual_table5", "stl10")["without-invariance-20"], tmp_path)
    assert cfg.method_kwargs.sim_loss_weight == 0
    six = rows("dual_table6", "cifar100")
    assert composed(six["shared-bn-10"], tmp_path)[1].separate_bn is False
    assert composed(six["warmup-50"], tmp_path)[1].warmup_gate is True


def test_figures_are_those_that_the_paper_prints():
    one = rows("dual_table1", "cifar10")
    assert len(one) == 11
    assert one["dense"].paper == {"dense_acc": 91.11, "dense_acc_std": 0.03, "macs_dense": 7.03e8}
    assert one["dual-30"].paper == {
        **{"dense_acc": 90.38, "dense_acc_std": 0.04, "gated_acc": 90.27, "gated_acc_std": 0.03},
        "gated_flops_reduction": 66.43,
    }
    assert one["gating-50"].paper["gated_flops_reduction"] == 51.62
    assert list(rows("dual_table1", "imagenet100")) == [
        *("dense", "gating-30", "gating-40", "gating-50", "dual-30", "dual-40", "dual-50")
    ]
    two = rows("dual_table2", "stl10")
    assert two["cifar100-dual-50"].paper == {"dense_acc": 66.52, "gated_acc": 67.3}
    assert two["imagenet100-dense"].paper == {"dense_acc": 72.8}
    assert rows("dual_table4", "stl10")["two-encoders-50"].paper["gated_acc"] == 78
    assert rows("dual_table5", "cifar100")["without-invariance-10"].paper["dense_acc"] == 4.06
    assert rows("dual_table6", "stl10")["warmup-10"].paper["gated_flops_reduction"] == 73.2


def printed(capsys, *words):
    assert main([*words, "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()


def test_evaluations_choose_their_branch(capsys, tmp_path):
    output = ["--output", str(tmp_path)]
    train, dense, gated = printed(capsys, "cifar10", "dual_table1", "dual-30", *output)
    assert "+gating=vicreg_dual gating.budget=0.3" in train
    assert "+gating.eval=dense" in dense
    assert "+gating.eval=gated" in gated
    for line in (dense, gated):
        assert "main_linear.py" in line
        assert "gating/recipes --config-name linear.yaml" in line
    _, only = printed(capsys, "cifar10", "dual_table1", "dense", *output)
    assert "gating.eval" not in only
    train, dense, gated = printed(
        capsys, "cifar100", "dual_table6", "shared-bn-10", "data.train_path=/images", *output
    )
    assert "gating.separate_bn=false" in train
    assert "main_knn.py --dataset cifar100 --k 1 --distance_function euclidean" in dense
    assert "--train_data_path /images --val_data_path datasets" in dense
    assert "--gating_eval dense --pretrained_checkpoint_dir CHECKPOINT" in dense
    assert "--gating_eval gated" in gated


def test_rows_that_evaluate_another_tables_encoder(capsys, tmp_path):
    words = ["stl10", "dual_table2", "cifar100-dual-10", "--output", str(tmp_path)]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "scripts/gating/cifar100/dual_table1.sh dual-10 first" in message
    trained = tmp_path / "dual_table1-cifar100" / "dual-10" / "train" / "vicreg" / "0"
    trained.mkdir(parents=True)
    (trained / "x.ckpt").write_bytes(b"")
    dense, gated = printed(capsys, *words)
    assert str(trained / "x.ckpt") in dense
    assert "++data.image_size=32 data.dataset=stl10" in gated
    native = printed(
        capsys, "stl10", "dual_table2", "imagenet100-dual-30", "--output", str(tmp_path)
    )
    assert not any("image_size" in line for line in native)
    seeded = ["cifar100", "dual_table4", "one-encoder-10", "--seeds", "3", "--output"]
    assert main([*seeded, str(tmp_path)]) == 2
    assert "dual_table1.sh dual-10 --seeds 3 first" in capsys.readouterr().err
    knn = printed(capsys, "cifar100", "dual_table4", "one-encoder-10", "--output", str(tmp_path))
    assert all(f"--pretrained_checkpoint_dir {trained}" in line for line in knn)


def test_seeds_are_runs_of_their_own(capsys, tmp_path):
    lines = printed(
        *(capsys, "cifar10", "dual_table1", "dual-30", "--seeds", "1", "2"),
        *("--output", str(tmp_path)),
    )
    assert len(lines) == 6
    for seed in (1, 2):
        own = [line for line in lines if f"++seed={seed}" in line]
        assert len(own) == 3
        assert all(f"dual-30/seed-{seed}/" in line for line in own)


# ---- figures ----


def fake(options, row, accuracies, reduction, seed=None):
    """What a run of a row and its linear evaluations leave."""
    run = runs.Options(options.folder, seed=seed)
    folder = runs.training_folder(row, run) / "vicreg" / "0"
    write_metrics(folder, [{"epoch": 499, "step": 48999, "val_acc1": 1.0}])
    args = {"method": "vicreg", "max_epochs": 500, "backbone": {"name": "resnet18"}}
    args |= {"devices": [0, 1], "optimizer": {"batch_size": 256}, "data": {"dataset": "cifar10"}}
    backbone = build_encoder(OmegaConf.create(args))
    if row.method:
        backbone = patch(backbone, build({"name": row.method, "budget": 0.3}))
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    torch.save({"state_dict": state}, folder / "x.ckpt")
    (folder / "args.json").write_text(json.dumps(args))
    for name, accuracy in accuracies.items():
        saved = reduction if name == "gated" else 0.0
        line = {"epoch": 99, "step": 4, "val_acc1": accuracy, "encoder/flops_reduction": saved}
        line |= {"encoder/macs_effective": (1 - saved) * 1e6}
        write_metrics(runs.linear_folder(row, run, name) / "linear" / "0", [line])


def test_mean_and_deviation_of_seeds(tmp_path):
    known = rows("dual_table1", "cifar10")
    options = runs.Options(tmp_path / "dual_table1-cifar10")
    measured = ((7, 90.0, 89.0, 0.66), (8, 90.5, 89.5, 0.67), (9, 92, 90, 0.7))
    for seed, dense, gated, saved in measured:
        fake(options, known["dual-30"], {"dense": dense, "gated": gated}, saved, seed)
    fake(options, known["dense"], {"dense": 91.0}, 0.0)
    found = {row["row"]: row for row in gather.collect(list(known.values()), options)}
    dual = found["dual-30"]
    assert dual["runs"] == 3
    assert dual["dense_acc"] == pytest.approx(statistics.mean((90.0, 90.5, 92)))
    assert dual["dense_acc_std"] == pytest.approx(statistics.stdev((90.0, 90.5, 92)))
    assert dual["gated_acc_std"] == pytest.approx(0.5)
    assert dual["gated_flops_reduction"] == pytest.approx(2.03 / 3)
    assert dual["gated_flops_reduction_std"] == pytest.approx(statistics.stdev((0.66, 0.67, 0.7)))
    assert dual["dense_flops_reduction"] == 0
    assert dual["label"] == ""  # of the paper's size
    assert found["dense"]["dense_acc"] == 91.0
    assert found["dense"]["macs_dense"] == dual["macs_dense"] == 703_560_448
    assert "dense_acc_std" not in found["dense"]
    assert found["gating-10"]["label"] == "not run"
    text = write.text(title("dual_table1"), list(found.values()), write.NOTES["gating"])
    line = next(line for line in text.splitlines() if line.startswith("dual-30"))
    assert "90.83 ±1.04" in line
    assert "90.38 ±0.04" in line  # the paper's
    assert "67.67% ±2.08%" in line
    assert "66.43%" in line
    assert "closed gates are simulated" in text


def test_nearest_neighbours_are_read_from_what_was_printed(tmp_path, monkeypatch):
    known = rows("dual_table4", "cifar100")
    options = runs.Options(tmp_path / "dual_table4-cifar100")
    row = known["one-encoder-10"]
    source = tmp_path / "dual_table1-cifar100" / "dual-10" / "train" / "vicreg" / "0"
    write_metrics(source, [{"epoch": 0, "step": 4, "val_acc1": 1.0}])
    (source / "x.ckpt").write_bytes(b"")
    monkeypatch.setattr(gather, "_macs_dense", lambda path: 1)
    assert gather.collect([row], options)[0]["label"] == "not run"  # trained, not evaluated
    logs = options.folder / "logs"
    logs.mkdir(parents=True)
    for branch, accuracy, saved in (("dense", 54.92, "0"), ("gated", 12.5, "0.8171")):
        evaluation = Evaluation(branch, "knn", branch=branch)
        (logs / f"{runs.log_name(row, options, evaluation)}.log").write_text(
            f"flops_reduction: {saved} (validation images)\n---\nRunning k-NN with params: k=1\n"
            f"Result: acc@1={accuracy}, acc@5={accuracy}\n"
        )
    (found,) = gather.collect([row], options)
    assert (found["dense_acc"], found["gated_acc"]) == (54.92, 12.5)
    assert (found["dense_flops_reduction"], found["gated_flops_reduction"]) == (0, 0.8171)
    assert (found["paper_dense_acc"], found["paper_gated_flops_reduction"]) == (54.92, 81.71)


def test_a_checkpoint_that_is_missing_is_named(tmp_path):
    row = rows("dual_table4", "cifar100")["one-encoder-10"]
    with pytest.raises(DataError, match="no checkpoint of dual_table1-cifar100/dual-10"):
        runs.checkpoint(row, runs.Options(tmp_path / "t"))


def test_small_scale(capsys, tmp_path):
    small = rows("dual_table1", "cifar10", "small")
    assert list(small) == ["dense", "gating-30", "dual-30"]
    assert {row.images for row in small.values()} == {5000}
    assert "gating.alpha=0.5" in small["dual-30"].overrides
    with pytest.raises(ConfigError, match=r"no small scale; cifar10 has one: .*dual_table1"):
        rows("dual_table1", "cifar100", "small")
    lines = printed(
        *(capsys, "cifar10", "dual_table1", "--scale", "small", "gating.gamma=0"),
        *("--output", str(tmp_path)),
    )
    assert len(programs.jobs(list(small.values()), runs.Options(tmp_path))) == len(lines) == 7
    assert ["gating.gamma=0" in line for line in lines[:3]] == [False, True, True]
