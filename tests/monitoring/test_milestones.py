# SPDX-License-Identifier: MIT
"""Milestones end a run that has not got there, after its checkpoint; best checkpoints."""

import math
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf

from solo.errors import ConfigError
from solo.methods import METHODS
from solo.monitoring.milestones import Milestones, check_milestones
from solo.utils.best_checkpoint import BestCheckpoint
from solo.utils.checkpointer import Checkpointer
from tests.methods.helpers import tiny_cfg, tiny_loaders, tiny_trainer

pytestmark = pytest.mark.unit


class Logs(pl.Callback):
    """Logs given values, one per epoch."""

    def __init__(self, **values):
        super().__init__()
        self.values = values

    def on_train_epoch_end(self, trainer, pl_module):
        for name, series in self.values.items():
            if series[trainer.current_epoch] is not None:
                pl_module.log(name, series[trainer.current_epoch])


def fit(callbacks, epochs=4, ckpt=None):
    torch.manual_seed(0)
    model = METHODS["base"](tiny_cfg("base"))
    trainer = tiny_trainer(max_epochs=epochs, callbacks=callbacks)
    trainer.fit(model, *tiny_loaders(), ckpt_path=ckpt, weights_only=True)
    return trainer


@pytest.mark.parametrize(
    ("values", "milestones", "epochs", "line"),
    [
        ([10, 20, 30, 40], {2: {"acc": 20}}, 4, ""),
        ([10, 20, 30, 40], {2: {"acc": 21}}, 2, "epoch 2: acc is 20, not at least 21"),
        ([10, 20, 30, 40], {1: {"acc": 5}, 3: {"acc": 31}}, 3, "epoch 3: acc is 30"),
        ([10, math.nan, 1, 1], {2: {"acc": 5}}, 2, "acc is nan"),
    ],
)
def test_at_least(values, milestones, epochs, line, capsys):
    trainer = fit([Logs(acc=values), Milestones(milestones)])
    assert trainer.current_epoch == epochs
    printed = capsys.readouterr().out
    assert ("STOPPED" in printed) is bool(line)
    assert line in printed


def test_of_a_loss_at_most_and_several_at_once(capsys):
    logs = Logs(some_loss=[3.0, 2.0, 2, 2], acc=[1.0, 2.0, 3, 4])
    fit([logs, Milestones({1: {"some_loss": 3.0}, 2: {"some_loss": 1.5, "acc": 10}})])
    printed = capsys.readouterr().out
    assert "epoch 2: some_loss is 2, not at most 1.5; acc is 2, not at least 10" in printed


class StepLosses(pl.Callback):
    """Keeps every step's classifier loss; `means` are those of the epochs."""

    def __init__(self):
        super().__init__()
        self.means, self.last = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append((float(outputs["loss"]), len(batch[-1])))
        if trainer.is_last_batch:
            weight = sum(n for _, n in self.losses)
            self.means.append(sum(loss * n for loss, n in self.losses) / weight)
            self.last.append(self.losses[-1][0])


def test_of_a_training_metric_the_mean_of_the_epoch_counts(capsys, tmp_path):
    seen, writer = StepLosses(), saver(tmp_path)
    best = BestCheckpoint(writer, "train_class_loss", "min")
    fit([seen, Milestones({1: {"train_class_loss": 0.0}}), writer, best])
    assert abs(seen.means[0] - seen.last[0]) > 0.05  # the two can be told apart
    assert f"train_class_loss is {seen.means[0]:.4g}, not at most 0" in capsys.readouterr().out
    assert best.best == pytest.approx(-seen.means[0], rel=1e-6)


def test_asking_for_the_means_changes_nothing_that_is_logged():
    plain, asked = fit([]), fit([Milestones({1: {"train_acc1": 0.0}, 3: {"train_acc1": 0.0}})])
    same = dict(plain.callback_metrics)
    assert same == asked.callback_metrics
    assert "train_class_loss_epoch" in same


def test_a_metric_that_is_not_logged_is_named():
    with pytest.raises(ConfigError, match=r"milestones.1.val_acc: .*'val_acc1'"):
        fit([Milestones({1: {"val_acc": 1}})])


@pytest.mark.parametrize("bad", [{"a": {"x": 1}}, {0: {"x": 1}}, {3: 5}, {3: {"x": "many"}}])
def test_bad_milestones_are_named(bad):
    with pytest.raises(ConfigError, match="milestones"):
        check_milestones(bad)
    assert check_milestones({"10": {"acc": 3}}) == {10: {"acc": 3.0}}


def test_a_milestone_that_no_epoch_reaches_is_named():
    assert check_milestones({10: {"acc": 3}}, 10) == {10: {"acc": 3.0}}
    with pytest.raises(ConfigError, match=r"milestones\.11: .* max_epochs=10 .* from 1 to 10"):
        Milestones({11: {"acc": 3}}, 10)


# ---- the best checkpoint ----


def saver(folder, every=1):
    return Checkpointer(OmegaConf.create({"name": "run"}), folder, frequency=every)


def kept(folder):
    return [p.name for p in sorted(folder.glob("*/best/*.ckpt"))]


@pytest.mark.parametrize(
    ("values", "mode", "epoch"),
    [
        ([1.0, 3.0, 2.0, 3.0], "max", 1),
        ([1.0, 3.0, 0.5, 3.0], "min", 2),
        ([math.nan, 1.0, math.nan, 0.0], "max", 1),
    ],
)
def test_the_best_epoch_is_kept_with_args(values, mode, epoch, tmp_path):
    writer = saver(tmp_path)
    fit([Logs(rank=values), writer, BestCheckpoint(writer, "rank", mode)])
    (name,) = kept(tmp_path)
    assert name.endswith(f"-ep={epoch}.ckpt")
    best = next(tmp_path.glob("*/best"))
    assert (best / "args.json").is_file()
    assert not list(best.glob("*.partial"))
    state = torch.load(best / name, weights_only=True)
    assert state["epoch"] == epoch
    assert (best.parent / name.replace(f"ep={epoch}", "ep=3")).is_file()


def test_a_resumed_run_must_beat_the_best_before(tmp_path):
    callbacks = SimpleNamespace(values=[5.0, 1.0, 4.0, 6.0])

    def run(epochs, ckpt=None, folder="a"):
        writer = saver(tmp_path / folder)
        best = BestCheckpoint(writer, "rank")
        fit([Logs(rank=callbacks.values), writer, best], epochs, ckpt)
        return writer, best

    writer, _ = run(2)
    _, best = run(3, writer.last_ckpt, "b")
    assert best.best == 5.0
    assert not kept(tmp_path / "b")
    _, best = run(4, writer.last_ckpt, "c")
    assert best.best == 6.0
    assert kept(tmp_path / "c")[0].endswith("-ep=3.ckpt")


def test_an_unknown_metric_is_named(tmp_path):
    writer = saver(tmp_path)
    with pytest.raises(ConfigError, match=r"checkpoint.monitor='val_ac1'.*'val_acc1'"):
        fit([writer, BestCheckpoint(writer, "val_ac1")])
    assert list(tmp_path.glob("*/*.ckpt"))  # nothing is lost
