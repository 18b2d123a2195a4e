# SPDX-License-Identifier: MIT
"""metrics.csv: columns that come later, kills in the middle, versions of several runs."""

import csv
import os

import pytest
import torch
from omegaconf import OmegaConf

from solo.files.lock import FolderLock
from solo.monitoring.loggers import CSVMetrics, build_loggers, next_version, remove_empty

pytestmark = pytest.mark.unit


def rows(path):
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def test_rows_with_columns_that_come_later(tmp_path):
    log = CSVMetrics(tmp_path)
    log.log_metrics({"loss": torch.tensor(1.5)}, step=0)
    log.save()
    log.log_metrics({"loss": 0.5}, step=1)
    log.log_metrics({"acc": 10.0, "epoch": 0}, step=1)
    log.save()
    log.log_metrics({"loss": 0.25}, step=2)
    log.finalize("success")
    assert log.path == tmp_path / "0" / "metrics.csv"
    assert rows(log.path) == [
        {"loss": "1.5", "step": "0"},
        {"loss": "0.5", "step": "1"},
        {"acc": "10.0", "epoch": "0", "step": "1"},
        {"loss": "0.25", "step": "2"},
    ]
    assert not list(tmp_path.rglob("*.partial"))


def test_nothing_is_written_before_the_first_row(tmp_path):
    log = CSVMetrics(tmp_path / "method")
    log.save()
    log.finalize("success")
    assert not (tmp_path / "method").exists()


def test_folders_that_killed_runs_have_only_claimed_are_used_again(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "mine.txt").write_text("no run has made this")
    for name in ("1", "2", "mine"):
        (tmp_path / name).mkdir()
    remove_empty(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "mine"]
    assert CSVMetrics(tmp_path).version == "1"
    (tmp_path / "1" / ".lock").write_text("")
    (tmp_path / "1" / "args.json.partial").write_text("{")
    remove_empty(tmp_path)
    assert CSVMetrics(tmp_path).version == "1"
    (tmp_path / "1" / "args.json").write_text("{}")
    assert CSVMetrics(tmp_path).version == "2"
    with FolderLock(tmp_path / "2"):
        assert CSVMetrics(tmp_path).version == "3"


def test_resumed_run_keeps_what_the_checkpoint_covers(tmp_path):
    first = CSVMetrics(tmp_path)
    for step in range(6):
        first.log_metrics({"loss": float(step)}, step=step)
    first.save()
    again = CSVMetrics(tmp_path, "0", start_from=first.path)
    again.keep_before(4)  # the checkpoint was taken after 4 steps; 4 and 5 are repeated
    again.log_metrics({"loss": 40.0, "new": 1.0}, step=4)
    again.save()
    assert [row["loss"] for row in rows(again.path)] == ["0.0", "1.0", "2.0", "3.0", "40.0"]


def test_resuming_into_another_folder_copies(tmp_path):
    first = CSVMetrics(tmp_path)
    first.log_metrics({"loss": 1.0}, step=0)
    first.save()
    before = first.path.read_bytes()
    second = CSVMetrics(tmp_path, start_from=first.path)
    second.keep_before(1)
    second.log_metrics({"loss": 2.0}, step=1)
    second.save()
    assert second.path == tmp_path / "1" / "metrics.csv"
    assert [row["loss"] for row in rows(second.path)] == ["1.0", "2.0"]
    assert first.path.read_bytes() == before


def test_versions(tmp_path):
    assert next_version(tmp_path / "absent") == "0"
    for name in ("0", "4", "offline-ab12"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == "5"
    one, two = CSVMetrics(tmp_path), CSVMetrics(tmp_path)
    assert (one.version, two.version, one.version) == ("5", "6", "5")


def test_build_loggers(tmp_path):
    off = {"wandb": {"enabled": False}, "tensorboard": {"enabled": False}}
    cfg = OmegaConf.create(off)
    (log,) = build_loggers(cfg, tmp_path)
    assert log.version == "0"
    (tmp_path / "0" / "x.ckpt").touch()
    # a checkpoint of this folder is continued in place, one from elsewhere in a new folder
    (log,) = build_loggers(cfg, tmp_path, resume=tmp_path / "0" / "x.ckpt")
    assert log.version == "0"
    (log,) = build_loggers(cfg, tmp_path, resume=tmp_path / "other" / "0" / "x.ckpt")
    assert log.version == "1"


def test_an_older_checkpoint_is_continued_beside_the_newer_one(tmp_path):
    cfg = OmegaConf.create({"wandb": {"enabled": False}, "tensorboard": {"enabled": False}})
    (tmp_path / "0").mkdir()
    old, new = (tmp_path / "0" / f"x-ep={epoch}.ckpt" for epoch in (1, 2))
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))
    assert build_loggers(cfg, tmp_path, resume=new)[0].version == "0"
    assert build_loggers(cfg, tmp_path, resume=old)[0].version == "1"


def test_tensorboard_writes_beside_the_csv(tmp_path):
    pytest.importorskip("tensorboard")
    cfg = OmegaConf.create({"wandb": {"enabled": False}, "tensorboard": {"enabled": True}})
    csv_log, board = build_loggers(cfg, tmp_path)
    board.log_metrics({"a": 1.0}, step=0)
    board.save()
    assert list((tmp_path / csv_log.version).glob("events.out.tfevents*"))
