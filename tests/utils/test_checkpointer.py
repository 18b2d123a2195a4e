# SPDX-License-Identifier: MIT
"""Checkpoints and args.json: names, safety against kills, exact resuming."""

import json
import re

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf

from solo.monitoring.guards import EpochSeeder
from solo.monitoring.loggers import CSVMetrics
from solo.utils.checkpointer import Checkpointer, last_checkpoint
from tests.utils.toy import Toy, cfg, fit

pytestmark = pytest.mark.unit


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_defaults_of_the_section():
    made = Checkpointer.add_and_assert_specific_cfg(OmegaConf.create({}))
    assert made.checkpoint == {
        "enabled": False,
        "dir": "trained_models",
        "frequency": 1,
        "keep_prev": False,
        "keep_last": 2,
        "every_n_steps": None,
        "pack": False,
        "monitor": None,
        "mode": None,
    }


def test_random_string_is_drawn_apart_from_the_seeds():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    drawn = Checkpointer.random_string(5, 3)
    assert re.fullmatch(r"(?=(.*[a-z]){5})(?=(.*\d){3}).{8}", drawn)
    assert torch.equal(state, torch.get_rng_state())


def test_files_of_a_run(tmp_path):
    saver = Checkpointer(cfg(), tmp_path)
    fit(Toy(), [saver], logger=CSVMetrics(tmp_path))
    assert saver.path == tmp_path / "0"
    assert saver.ckpt_placeholder == "toy-0-ep={}.ckpt"
    assert names(saver.path) == ["args.json", "metrics.csv", "toy-0-ep=2.ckpt"]
    args = json.loads((saver.path / "args.json").read_text())
    assert args == {"name": "toy", "method": "toy", "optimizer": {"lr": 0.1}, "wandb_run_id": "0"}
    content = torch.load(saver.last_ckpt)  # torch's default: weights only
    assert content["global_step"] == 9
    assert set(content["state_dict"]) == {"backbone.weight", "backbone.bias"}
    assert content["optimizer_states"]
    assert content["lr_schedulers"]


def test_without_a_logger_the_version_is_drawn(tmp_path):
    saver = Checkpointer(cfg(), tmp_path)
    fit(Toy(), [saver], epochs=1)
    assert re.fullmatch(r"offline-[a-z0-9]{8}", saver.path.name)
    assert json.loads((saver.path / "args.json").read_text())["wandb_run_id"] is None


def test_all_are_kept_on_request(tmp_path):
    fit(Toy(), [Checkpointer(cfg(), tmp_path, keep_prev=True)], logger=CSVMetrics(tmp_path))
    kept = [name for name in names(tmp_path / "0") if name.endswith(".ckpt")]
    assert kept == [f"toy-0-ep={epoch}.ckpt" for epoch in range(3)]


@pytest.mark.parametrize(("epochs", "expected"), [(5, [0, 2, 4]), (4, [0, 2, 3])])
def test_the_last_epoch_is_saved_whatever_the_frequency(tmp_path, epochs, expected):
    saver = Checkpointer(cfg(), tmp_path, frequency=2, keep_prev=True)
    fit(Toy(), [saver], epochs=epochs, logger=CSVMetrics(tmp_path))
    saved = [saver.path / saver.ckpt_placeholder.format(epoch) for epoch in expected]
    assert sorted(saver.path.glob("*.ckpt")) == saved


def test_the_last_step_is_saved_too(tmp_path):
    saver = Checkpointer(cfg(), tmp_path, frequency=100)
    fit(Toy(), [saver], epochs=-1, max_steps=5, logger=CSVMetrics(tmp_path))
    assert torch.load(saver.last_ckpt)["global_step"] == 5


class Watch(pl.Callback):
    """Lists the checkpoints and the logged epochs at every epoch's start, then maybe dies."""

    def __init__(self, folder, die_in=None):
        self.folder, self.die_in, self.seen = folder, die_in, []

    def on_train_epoch_start(self, trainer, pl_module):
        text = (self.folder / "metrics.csv").read_text() if trainer.current_epoch else ""
        self.seen.append((names(self.folder), text.count("\n")))

    def on_train_batch_end(self, trainer, *args):
        if trainer.current_epoch == self.die_in:
            raise MemoryError("killed")


def test_there_is_a_complete_checkpoint_at_any_moment(tmp_path):
    saver = Checkpointer(cfg(), tmp_path)
    watch = Watch(tmp_path / "0")
    fit(Toy(), [saver, watch], logger=CSVMetrics(tmp_path), log_every_n_steps=1)
    files, lines = zip(*watch.seen, strict=True)
    assert files[0] == ["args.json"]
    assert files[1] == ["args.json", "metrics.csv", "toy-0-ep=0.ckpt"]
    assert files[2] == ["args.json", "metrics.csv", "toy-0-ep=1.ckpt"]
    # a header, three steps and the mean of the epoch: all on the disk before the checkpoint is
    assert lines[1:] == (5, 9)


def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    saver = Checkpointer(cfg(), tmp_path)
    original = pl.Trainer.save_checkpoint

    def full_disk(trainer, path, *args, **kwargs):
        original(trainer, path, *args, **kwargs)
        if trainer.current_epoch == 1:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError("no space left")

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", full_disk)
    with pytest.raises(OSError, match="no space"):
        fit(Toy(), [saver], logger=CSVMetrics(tmp_path))
    (kept,) = saver.path.glob("*.ckpt")
    assert torch.load(kept)["epoch"] == 0
    assert not list(saver.path.glob("*.partial"))
    # what a killed run has left half written is cleared away by the next one in the folder
    (saver.path / "toy-0-ep=1.ckpt.partial").write_bytes(b"half")
    fit(Toy(), [Checkpointer(cfg(), tmp_path)], logger=CSVMetrics(tmp_path, "0"), epochs=1)
    assert not list(saver.path.glob("*.partial"))


@pytest.mark.parametrize("val", [False, True])
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, interval, val):
    def callbacks():
        return [EpochSeeder(7), Checkpointer(cfg(), tmp_path / "runs")]

    log = {"log_every_n_steps": 1, "val": val, "epochs": 4}
    torch.manual_seed(0)
    straight = Toy(interval)
    fit(straight, callbacks(), logger=CSVMetrics(tmp_path / "runs"), **log)
    torch.manual_seed(0)
    killed = Toy(interval)
    dying = Watch(tmp_path / "runs" / "1", die_in=2)
    with pytest.raises(MemoryError):
        fit(killed, [*callbacks(), dying], logger=CSVMetrics(tmp_path / "runs"), **log)
    checkpoint = last_checkpoint(tmp_path / "runs" / "1")
    assert checkpoint.name.endswith("ep=1.ckpt")
    torch.manual_seed(99)
    resumed = Toy(interval)
    again = CSVMetrics(tmp_path / "runs", "1", start_from=checkpoint.parent / "metrics.csv")
    again.keep_before(6)
    fit(resumed, callbacks(), logger=again, ckpt=str(checkpoint), **log)
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert names(tmp_path / "runs" / "1") == ["args.json", "metrics.csv", "toy-1-ep=3.ckpt"]
    texts = [(tmp_path / "runs" / version / "metrics.csv").read_text() for version in "01"]
    assert texts[0] == texts[1]
