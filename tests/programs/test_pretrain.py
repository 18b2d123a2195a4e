# SPDX-License-Identifier: MIT
"""main_pretrain: what a run writes, how it continues, and what it does not continue from."""

import csv
import json

import lightning.pytorch as pl
import pytest
import torch

from solo.errors import CheckpointError, NonFiniteError
from solo.programs import training
from solo.programs.pretrain import pretrain
from tests.programs.tiny import PRETRAIN, config, run_of


def rows(path):
    """Of a metrics file, without what a clock says."""
    with open(path, newline="") as file:
        found = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "sparse/seconds_per_step"} for row in found]


def test_files_of_a_run(pretrained):
    run, checkpoint = pretrained
    assert sorted(path.name for path in run.iterdir()) == [
        "args.json",
        "metrics.csv",
        "results.json",
        "tiny-0-ep=0.ckpt",
    ]
    args = json.loads((run / "args.json").read_text())
    assert args["optimizer"]["lr"] == pytest.approx(0.5 * 16 / 256)
    assert args["optimizer"]["lr_as_written"] == 0.5
    assert args["data"]["num_classes"] == 10
    assert args["data"]["num_large_crops"] == 2
    assert args["wandb_run_id"] == "0"
    columns = rows(run / "metrics.csv")[0].keys()
    wanted = {
        "epoch",
        "step",
        "train_class_loss_step",
        "train_class_loss_epoch",
        "train_acc1_epoch",
        "train_nce_loss_step",
        "tau",
        "val_loss",
        "val_acc1",
        "val_acc5",
    }
    assert wanted <= set(columns)
    state = torch.load(checkpoint)["state_dict"]
    assert {key.split(".")[0] for key in state} >= {"backbone", "momentum_backbone", "classifier"}


class Die(pl.Callback):
    """Ends the run in the middle of an epoch, as a kill does."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, *args):
        if trainer.current_epoch == self.epoch:
            raise MemoryError("killed")


def same_state(one, other):
    one, other = (torch.load(path)["state_dict"] for path in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("workers", "sparse"), [(2, False), (0, True)])
def test_a_killed_run_resumes_by_itself_to_the_same_bits(cwd, monkeypatch, workers, sparse):
    options = {"max_epochs": 3, "auto_resume": {"enabled": True}, "data__num_workers": workers}
    options["seed"] = workers and 5  # 0 is a seed like any other
    if sparse:
        pytest.importorskip("sparse_ext.extension").register()
        pytest.importorskip("sparse_ext.training.callback")
        options["sparse"] = {"name": "synccp", "update_period": 1}
    options["checkpoint"] = {"enabled": True, "dir": "straight/trained_models"}
    pretrain(config(PRETRAIN, **options))
    _, straight = run_of(cwd / "straight")

    options["checkpoint"] = {"enabled": True, "dir": "killed/trained_models"}
    own = training._own_callbacks
    monkeypatch.setattr(training, "_own_callbacks", lambda *args: [*own(*args), Die(1)])
    with pytest.raises(MemoryError):
        pretrain(config(PRETRAIN, **options))
    assert run_of(cwd / "killed")[1].name == "tiny-0-ep=0.ckpt"
    monkeypatch.setattr(training, "_own_callbacks", own)
    pretrain(config(PRETRAIN, **options))
    run, resumed = run_of(cwd / "killed")
    assert resumed.name == "tiny-0-ep=2.ckpt"
    assert same_state(straight, resumed)
    assert [path.name for path in run.parent.iterdir()] == ["0"]
    assert rows(run / "metrics.csv") == rows(straight.parent / "metrics.csv")


def test_explicit_resume_extends_a_run(cwd):
    pretrain(config(PRETRAIN))
    run, checkpoint = run_of(cwd)
    trainer = pretrain(config(PRETRAIN, max_epochs=2, resume_from_checkpoint=str(checkpoint)))
    assert (trainer.current_epoch, trainer.global_step) == (2, 4)
    assert run_of(cwd)[1].name == "tiny-0-ep=1.ckpt"
    assert [row["epoch"] for row in rows(run / "metrics.csv") if row["val_loss"]] == ["0", "1"]


class Rates(pl.Callback):
    """The rate of the encoder's group in each optimizer step, and its weight decay."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *args):
        group = trainer.optimizers[0].param_groups[0]
        self.seen.append((trainer.global_step, group["lr"], group["weight_decay"]))


def rates(monkeypatch, base=PRETRAIN, **options):
    own, recorder = training._own_callbacks, Rates()
    monkeypatch.setattr(training, "_own_callbacks", lambda *args: [*own(*args), recorder])
    pretrain(config(base, **options))
    monkeypatch.setattr(training, "_own_callbacks", own)
    return recorder.seen


STEP = {"name": "warmup_step", "lr_decay_steps": [2, 3], "warmup_epochs": 0.5}
PLAIN_STEP = {"name": "step", "lr_decay_steps": [2], "interval": "step"}


@pytest.mark.parametrize(
    ("scheduler", "later"),
    [
        (PRETRAIN["scheduler"], {}),
        (PRETRAIN["scheduler"], {"optimizer__lr": 0.1, "optimizer__weight_decay": 1e-3}),
        (STEP, {"scheduler": {**STEP, "lr_decay_steps": [3]}}),
        (PLAIN_STEP, {"optimizer__lr": 0.1}),
        ({"name": "none"}, {"optimizer__lr": 0.1}),
    ],
    ids=["longer", "other rate", "other milestones", "step", "no schedule"],
)
def test_a_resumed_run_follows_its_own_schedule(cwd, monkeypatch, scheduler, later):
    """From the old step on, its rates are those of a run that had its configuration from 0 on."""
    first = {"scheduler": scheduler, "max_epochs": 2}
    second = {"scheduler": scheduler, "max_epochs": 4, **later}
    wanted = rates(monkeypatch, **second, checkpoint__dir="straight/trained_models")
    rates(monkeypatch, **first)
    run, checkpoint = run_of(cwd)
    found = rates(monkeypatch, **second, resume_from_checkpoint=str(checkpoint))
    assert [step for step, _, _ in found] == [4, 5, 6, 7]
    assert found == [(s, pytest.approx(lr, rel=1e-12), wd) for s, lr, wd in wanted[4:]]
    args = json.loads((run / "args.json").read_text())
    assert args["optimizer"]["lr"] == config(PRETRAIN, **second).optimizer.lr * 16 / 256
    assert args["max_epochs"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer__batch_size": 32, "limit_train_batches": 1}, r"2 optimizer steps.* has 1"),
        ({"accumulate_grad_batches": 2}, r"2 optimizer steps.* has 1"),
        ({"scheduler": {"name": "none"}}, r"another scheduler\.name"),
        ({"scheduler": STEP}, r"followed another schedule.*scheduler\.name"),
    ],
)
def test_epochs_of_another_length_or_kind_are_refused(cwd, change, message):
    pretrain(config(PRETRAIN))
    _, checkpoint = run_of(cwd)
    before = checkpoint.read_bytes()
    options = {"max_epochs": 2, "resume_from_checkpoint": str(checkpoint), **change}
    with pytest.raises(CheckpointError, match=message):
        pretrain(config(PRETRAIN, **options))
    assert checkpoint.read_bytes() == before


def test_a_sparse_run_is_extended_when_its_ramp_is_over(cwd, monkeypatch):
    pytest.importorskip("sparse_ext.extension").register()
    sparse = {"name": "gmp", "update_period": 1}
    options = {"sparse": sparse, "max_epochs": 3}
    own = training._own_callbacks
    monkeypatch.setattr(training, "_own_callbacks", lambda *args: [*own(*args), Die(1)])
    with pytest.raises(MemoryError):
        pretrain(config(PRETRAIN, **options))
    monkeypatch.setattr(training, "_own_callbacks", own)
    given = {"resume_from_checkpoint": str(run_of(cwd)[1])}
    with pytest.raises(CheckpointError, match="6 optimizer steps, and this run has 12"):
        pretrain(config(PRETRAIN, **{**options, "max_epochs": 6}, **given))
    pretrain(config(PRETRAIN, **options, **given))
    given = {"resume_from_checkpoint": str(run_of(cwd)[1])}
    trainer = pretrain(config(PRETRAIN, **{**options, "max_epochs": 6}, **given))
    assert trainer.global_step == 12


def test_a_finished_run_is_not_repeated(cwd):
    options = {"auto_resume": {"enabled": True}}
    pretrain(config(PRETRAIN, **options))
    run, _ = run_of(cwd)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    trainer = pretrain(config(PRETRAIN, **options))
    assert trainer.global_step == 2
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert [path.name for path in run.parent.iterdir()] == ["0"]


def test_another_seed_is_another_run(cwd):
    pretrain(config(PRETRAIN, auto_resume={"enabled": True}))
    pretrain(config(PRETRAIN, auto_resume={"enabled": True}, seed=6))
    assert not same_state(run_of(cwd)[1], run_of(cwd, version="1")[1])


def test_metrics_are_written_without_checkpoints(cwd):
    pretrain(config(PRETRAIN, checkpoint={"enabled": False}))
    files = {path.relative_to(cwd).as_posix() for path in cwd.rglob("*") if path.is_file()}
    run = "trained_models/mocov2plus/0"
    assert files == {f"{run}/metrics.csv", f"{run}/results.json"}


def test_nan_stops_the_run_and_keeps_what_was_good(cwd):
    with pytest.raises(NonFiniteError, match="No checkpoint was written yet"):
        pretrain(config(PRETRAIN, optimizer__lr=1e30, scheduler={"name": "none"}))
    assert not list(cwd.rglob("*.ckpt"))


def damaged(folder, kind, checkpoint):
    path = folder / f"{kind}.ckpt"
    if kind == "truncated":
        path.write_bytes(checkpoint.read_bytes()[:2000])
    elif kind == "text":
        path.write_text("no checkpoint")
    elif kind == "weights":
        torch.save({"state_dict": torch.load(checkpoint)["state_dict"]}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no such checkpoint"),
        ("truncated", "truncated or damaged"),
        ("text", "not a checkpoint"),
        ("weights", "no state of a training run"),
    ],
)
def test_bad_checkpoint_to_resume(cwd, pretrained, kind, message):
    path = damaged(cwd, kind, pretrained[1])
    with pytest.raises(CheckpointError, match=message):
        pretrain(config(PRETRAIN, resume_from_checkpoint=str(path)))
    assert not (cwd / "trained_models").exists()


@pytest.mark.parametrize("change", [{"method": "simclr"}, {"backbone__kwargs": {"width": 4}}])
@pytest.mark.filterwarnings("ignore:method_kwargs.queue_size")
def test_a_checkpoint_of_another_run_cannot_be_continued(cwd, pretrained, change):
    with pytest.raises(CheckpointError, match=r"cannot be continued: it is of another"):
        pretrain(config(PRETRAIN, resume_from_checkpoint=str(pretrained[1]), **change))
