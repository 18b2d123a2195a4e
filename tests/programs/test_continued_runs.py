# SPDX-License-Identifier: MIT
"""Runs that go on with another length, rate, batch size or number of processes."""

import json

import lightning.pytorch as pl
import pytest
import torch

from solo.errors import CheckpointError
from solo.programs import training
from solo.programs.linear import linear
from solo.programs.pretrain import pretrain
from tests.programs.test_pretrain import Rates
from tests.programs.tiny import LINEAR, PRETRAIN, config, run_of


@pytest.fixture
def recorded(monkeypatch):
    """A function that runs a program and gives (step, rate) of every step."""
    own = training._own_callbacks

    def run(program, cfg):
        recorder = Rates()
        monkeypatch.setattr(training, "_own_callbacks", lambda *args: [*own(*args), recorder])
        program(cfg)
        return [(step, rate) for step, rate, _ in recorder.seen]

    return run


def evaluation(pretrained, **options):
    decay = {"optimizer__weight_decay": 0.5}  # solo-learn's factor of the exponential schedule
    return config(LINEAR, pretrained_feature_extractor=str(pretrained[1]), **decay, **options)


def test_an_exponential_schedule_follows_the_new_rate(cwd, pretrained, recorded):
    first = {"scheduler": {"name": "exponential"}, "max_epochs": 2}
    second = {**first, "max_epochs": 4, "optimizer__lr": 0.2}
    straight = {"checkpoint__dir": "straight/trained_models"}
    wanted = recorded(linear, evaluation(pretrained, **second, **straight))
    recorded(linear, evaluation(pretrained, **first))
    given = {"resume_from_checkpoint": str(run_of(cwd, "linear")[1])}
    found = recorded(linear, evaluation(pretrained, **second, **given))
    assert found == [(step, pytest.approx(rate, rel=1e-12)) for step, rate in wanted[4:]]
    assert found[0][1] == pytest.approx(0.2 * 16 / 256 * 0.5**2)


def test_reductions_on_a_plateau_follow_the_new_rate(cwd, pretrained, recorded):
    """Two reductions by ten are in the checkpoint; the rate becomes a fifth."""
    first = {"scheduler": {"name": "reduce"}, "max_epochs": 1}
    recorded(linear, evaluation(pretrained, **first))
    run, path = run_of(cwd, "linear")
    content = torch.load(path, weights_only=True)
    for group in content["optimizer_states"][0]["param_groups"]:
        group["lr"] *= 0.01
    torch.save(content, path)
    for rate in (0.1, 0.5):
        later = {"max_epochs": 2, "optimizer__lr": rate, "resume_from_checkpoint": str(path)}
        found = recorded(linear, evaluation(pretrained, **{**first, **later}))
        assert found[0] == (2, pytest.approx(rate * 16 / 256 * 0.01))
        assert json.loads((run / "args.json").read_text())["optimizer"]["lr"] == rate * 16 / 256
        torch.save(content, path)


@pytest.mark.parametrize("other", ["exponential", "step", "warmup_cosine"])
def test_another_kind_of_schedule_is_refused(cwd, pretrained, other):
    for written, asked in (("reduce", other), (other, "reduce")):
        folder = {"checkpoint__dir": f"{written}-{asked}"}
        linear(evaluation(pretrained, scheduler={"name": written}, **folder))
        path = next((cwd / f"{written}-{asked}").rglob("*.ckpt"))
        later = {"scheduler": {"name": asked}, "max_epochs": 2, **folder}
        with pytest.raises(CheckpointError, match=r"scheduler\.name"):
            linear(evaluation(pretrained, **later, resume_from_checkpoint=str(path)))


class Killed(pl.Callback):
    """Ends a run after its seventh step."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 7:
            raise MemoryError("killed")


@pytest.fixture
def within(cwd, monkeypatch):
    """A checkpoint after step 6 of epochs of 4, and the options of its run."""
    saves = {"enabled": True, "every_n_steps": 3, "keep_prev": True}
    options = {"max_epochs": 2, "limit_train_batches": 4, "checkpoint": saves}
    own = training._own_callbacks
    monkeypatch.setattr(training, "_own_callbacks", lambda *args: [*own(*args), Killed()])
    with pytest.raises(MemoryError):
        pretrain(config(PRETRAIN, **options))
    monkeypatch.setattr(training, "_own_callbacks", own)
    path = run_of(cwd)[1]
    assert torch.load(path, weights_only=True)["global_step"] == 6
    return {**options, "resume_from_checkpoint": str(path)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit_train_batches": 3}, r"epochs of 4 optimizer steps.* has 3"),
        ({"accumulate_grad_batches": 2}, r"epochs of 4 optimizer steps.* has 2"),
        ({"optimizer__batch_size": 8}, r"within an epoch with \{'batch_size': 16\}.* 8"),
    ],
)
def test_within_an_epoch_another_length_or_batch_is_refused(within, change, message):
    with pytest.raises(CheckpointError, match=message):
        pretrain(config(PRETRAIN, **{**within, **change}))


def test_within_an_epoch_another_number_of_processes_is_refused(within, monkeypatch):
    path = within["resume_from_checkpoint"]
    content = torch.load(path, weights_only=True)
    content["callbacks"]["ResumedRun"]["processes"] = 2
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"within an epoch with \{'processes': 2\}.* 1"):
        pretrain(config(PRETRAIN, **within))


def test_within_an_epoch_a_longer_run_follows_its_own_schedules(within, recorded):
    longer = {"max_epochs": 4, "optimizer__lr": 0.1, "momentum": {"base_tau": 0.5}}
    begun = {key: value for key, value in within.items() if key != "resume_from_checkpoint"}
    straight = {**begun, **longer, "checkpoint": {"enabled": True, "dir": "straight"}}
    wanted = recorded(pretrain, config(PRETRAIN, **straight))
    found = recorded(pretrain, config(PRETRAIN, **{**within, **longer}))
    assert found == [(step, pytest.approx(rate, rel=1e-12)) for step, rate in wanted[6:]]


def test_the_first_momentum_update_is_that_of_the_longer_run(within, monkeypatch):
    from solo.methods.base_momentum import BaseMomentumMethod

    own, seen = BaseMomentumMethod._update_momentum, []

    def update(self, step):
        seen.append((step, self.momentum_updater.cur_tau))
        own(self, step)

    monkeypatch.setattr(BaseMomentumMethod, "_update_momentum", update)
    longer = {"max_epochs": 4, "momentum": {"base_tau": 0.5, "final_tau": 1.0}}
    pretrain(config(PRETRAIN, **{**within, **longer}))
    half = 0.25 * (1 + torch.tensor(torch.pi * 6 / 16).cos().item())
    assert seen[0] == (7, pytest.approx(1 - half))


@pytest.fixture
def gated(cwd):
    """Options of a run of four steps whose gates are settled after two of them."""
    pytest.importorskip("sparse_ext.extension").register()
    gating = {"name": "fbs", "density": 0.5, "settled": 0.5}
    saves = {"enabled": True, "keep_prev": True}
    byol = {"proj_hidden_dim": 16, "proj_output_dim": 8}
    return {"method": "vicreg", "method_kwargs": byol, "gating": gating, "max_epochs": 4,
            "limit_train_batches": 1, "checkpoint": saves, "optimizer__lr": 0.01}  # fmt: skip


def test_a_gated_run_becomes_longer_once_its_gates_are_settled(cwd, gated, monkeypatch):
    from sparse_ext.gating.methods.saliency import fbs

    pretrain(config(PRETRAIN, **gated))
    files = {int(p.stem.rpartition("=")[2]): p for p in (cwd / "trained_models").rglob("*.ckpt")}
    longer = {**gated, "max_epochs": 12}
    early = {"resume_from_checkpoint": str(files[0])}
    with pytest.raises(CheckpointError, match=r"4 optimizer steps.* has 12.* at step 2"):
        pretrain(config(PRETRAIN, **longer, **early))
    densities, own = [], fbs.density_at
    monkeypatch.setattr(
        fbs, "density_at", lambda *args: densities.append(own(*args)) or densities[-1]
    )
    trainer = pretrain(config(PRETRAIN, **longer, resume_from_checkpoint=str(files[3])))
    assert trainer.global_step == 12
    assert set(densities) == {0.5}


def test_figures_that_are_not_of_every_epoch_are_remembered(cwd, monkeypatch):
    """Validation in the second of three epochs, a kill in the third."""
    options = {"max_epochs": 3, "limit_train_batches": 3, "check_val_every_n_epoch": 2}
    results, own = {}, training._own_callbacks
    for name in ("straight", "resumed"):
        folder = {**options, "checkpoint": {"enabled": True, "dir": name}}
        if name == "resumed":
            with monkeypatch.context() as patch:
                patch.setattr(training, "_own_callbacks", lambda *args: [*own(*args), Killed()])
                with pytest.raises(MemoryError):
                    pretrain(config(PRETRAIN, **folder))
            folder["resume_from_checkpoint"] = str(next((cwd / name).rglob("*.ckpt")))
        pretrain(config(PRETRAIN, **folder))
        run = next((cwd / name).rglob("results.json"))
        results[name] = json.loads(run.read_text())["run"]["metrics"]
    assert "val_acc1" in results["straight"]
    assert results["resumed"] == results["straight"]
