# SPDX-License-Identifier: MIT
"""Tables of the paper: every row composes to a configuration that its method accepts."""

import subprocess
import sys
from unittest import mock

import pytest

from scripts.experiments.programs import ROOT
from scripts.experiments.tables import programs, runs
from scripts.experiments.tables.__main__ import main
from scripts.experiments.tables.rows import find, rows
from solo.args.knn import parse_args_knn
from solo.errors import ConfigError

pytestmark = pytest.mark.unit

TABLES = {
    "cifar10": (1, 2, 3, 4, 6, 8, 9, 10, 11, 12),
    "cifar100": (4, 6, 8),
    "imagenet": (5, 17),
}
EVERY = [
    (f"table{number}", dataset, scale)
    for dataset, numbers in TABLES.items()
    for number in numbers
    for scale in ("paper", "small")
    if scale == "paper" or (dataset, number) == ("cifar10", 4)
]


def composed(row, tmp_path):
    """What the training of a row reads, as its program composes and checks it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from solo.args import linear, pretrain
    from sparse_ext.extension import enable

    (tmp_path / "train").mkdir(exist_ok=True)
    for name in "ab":
        (tmp_path / "train" / name).mkdir(exist_ok=True)
    (tmp_path / "val").mkdir(exist_ok=True)
    options = runs.Options(tmp_path / "out", tmp_path)
    job = programs.jobs([row], options)[0]
    words = [str(part) for part in job.command()]
    if "--config-path" not in words:  # kNN
        with mock.patch.object(sys, "argv", words[1:]):
            assert parse_args_knn().k == [1]
        return None, None
    folder, name = words[words.index("--config-path") + 1], words[words.index("--config-name") + 1]
    with initialize_config_dir(folder, version_base="1.2"):
        cfg = compose(name, overrides=words[words.index("--config-name") + 2 :])
    OmegaConf.set_struct(cfg, False)
    enable(cfg)
    section = cfg.pop(row.section, None)
    (pretrain if row.kind == "ssl" else linear).parse_cfg(cfg)
    return cfg, section


@pytest.mark.parametrize(("table", "dataset", "scale"), EVERY, ids=map("-".join, EVERY))
def test_every_row_is_a_valid_configuration(table, dataset, scale, tmp_path):
    from sparse_ext.extension import register

    register()
    for row in rows(table, dataset, scale).values():
        cfg, section = composed(row, tmp_path)
        assert (section is None) == (row.method is None)
        if section is not None:
            assert section.name == row.method
        if scale == "paper":
            assert cfg.max_epochs == row.expected["epochs"]
            assert cfg.backbone.name == row.expected["backbone"]
        assert row.paper
        script = ROOT / "scripts" / "sparse" / dataset / f"{table}.sh"
        assert f"{dataset} {table}" in script.read_text()


def test_rows_carry_the_settings_of_section_5_9(tmp_path):
    """Values of the paper, written out once more."""
    from sparse_ext.extension import register

    register()
    four = rows("table4", "cifar100")
    assert len(four) == 21
    cfg, section = composed(four["byol-synccp-90"], tmp_path)
    assert (cfg.method, cfg.data.dataset, cfg.max_epochs) == ("byol", "cifar100", 1000)
    assert (cfg.optimizer.name, cfg.optimizer.lr, cfg.optimizer.batch_size) == ("lars", 1.0, 256)
    assert (cfg.momentum.base_tau, cfg.momentum.final_tau) == (0.99, 1.0)
    assert (section.initial, section.final, section.gap) == (0.3, 0.9, 0.3)
    cfg, _ = composed(four["mocov2plus-granet-80"], tmp_path)
    assert (cfg.optimizer.name, cfg.optimizer.lr, cfg.method_kwargs.queue_size) == (
        "sgd",
        0.3,
        32768,
    )
    cfg, section = composed(rows("table5", "imagenet")["synccp-80"], tmp_path)
    assert (cfg.backbone.name, cfg.optimizer.batch_size, len(cfg.devices)) == ("resnet50", 128, 2)
    assert (cfg.accumulate_grad_batches, cfg.optimizer.lr, cfg.max_epochs) == (16, 0.45, 300)
    assert section.update_period == 250
    cfg, section = composed(rows("table8", "cifar10")["rigl-90"], tmp_path)
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay, cfg.max_epochs) == (0.1, 5e-4, 160)
    assert list(cfg.scheduler.lr_decay_steps) == [80, 120]
    cfg, section = composed(rows("table8", "cifar10")["byol-synccp-90"], tmp_path)
    assert section is None  # the masks are in the checkpoint
    assert (cfg.finetune, cfg.optimizer.lr, cfg.data.dataset) == (True, 0.1, "custom")


def test_figures_are_those_that_the_paper_prints():
    four = rows("table4", "cifar10")
    assert four["byol-synccp-90"].paper == {"acc": 92.03, "acc_std": 0.05}
    assert four["mocov2plus-sd-90"].paper["acc"] == 87.68
    assert rows("table4", "cifar100")["barlow-sd-90"].paper == {"acc": 61.77, "acc_std": 0.04}
    five = rows("table5", "imagenet")
    assert [row.paper["acc"] for row in five.values()] == [
        *(68.12, 67.02, 65.67, 65.45, 64.22, 63.02, 60.56)
    ]
    assert five["sd-90"].paper["training"] == 0.63
    assert rows("table6", "cifar10")["byol-2of4"].paper["acc"] == 92.61
    assert rows("table2", "cifar10")["granet-80"].paper["momentum_acc"] == 91.31
    assert rows("table9", "cifar10")["50-90-gap-50"].paper == {"acc": 91.68, "training": 0.6}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rows("table7", "cifar10"), "no 'table7' here. Did you mean 'table"),
        (lambda: rows("table5", "cifar10"), "table5 has no rows on 'cifar10'.*imagenet"),
        (lambda: rows("table4", "cifar10", "tiny"), "--scale 'tiny' is unknown"),
        (lambda: rows("table5", "imagenet", "small"), "no small scale"),
        (lambda: find("byol-sync-90", rows("table4", "cifar10")), "mean 'byol-synccp-90'"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_listing_needs_no_torch():
    code = (
        "import sys; from scripts.experiments.tables.__main__ import main; "
        "main(['cifar10', 'table4', '--list']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "byol-granet-90" in done.stdout
    assert "[paper: acc 90.13, acc_std 0.03]" in done.stdout


def test_dry_run_prints_training_and_evaluation(capsys, tmp_path):
    words = ["cifar10", "table1", "sd-90", "backbone.kwargs.width=8", "optimizer.lr=1"]
    assert main([*words, "--dry-run", "--output", str(tmp_path), "--linear", "max_epochs=3"]) == 0
    train, online, momentum = capsys.readouterr().out.splitlines()
    assert "main_pretrain.py" in train
    assert "+sparse=sd sparse.final=0.9" in train
    assert train.endswith("backbone.kwargs.width=8 optimizer.lr=1")
    assert "pretrained_feature_extractor" not in train
    for line in (online, momentum):
        assert "main_linear.py" in line
        assert "backbone.kwargs.width=8 max_epochs=3" in line  # the same encoder
        assert "optimizer.lr=1" not in line
    assert "eval_encoder=momentum" in momentum
    assert "eval_encoder" not in online


def test_overrides_of_sparse_leave_the_dense_row_dense(capsys, tmp_path):
    words = ["cifar10", "table4", "--scale", "small", "sparse.update_period=2", "max_epochs=2"]
    assert main([*words, "--dry-run", "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    trained = {name: line for line in lines for name in ("synccp", "dense") if f"{name}" in line}
    assert all("max_epochs=2" in line for line in lines[:4])
    dense = [line for line in lines[:4] if "byol-dense" in line]
    assert len(dense) == 1
    assert "sparse.update_period" not in dense[0]
    assert sum("sparse.update_period=2" in line for line in lines) == 3
    assert trained


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cifar10", "table4"], "Which row?"),
        (["cifar10", "table4", "byol-synccp-91"], "Did you mean 'byol-synccp-90'"),
        (["cifar10", "table4", "--scale", "small"], "--data FOLDER"),
        (["cifar10", "table4", "--scale", "small", "--data", "nowhere"], "--data: nowhere"),
        (["cifar10", "table8", "byol-synccp-90"], "imagenet/table5.sh synccp-90 first"),
    ],
)
def test_the_launcher_names_what_is_missing(words, message, capsys, tmp_path):
    assert main([*words, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
