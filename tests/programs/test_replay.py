# SPDX-License-Identifier: MIT
"""A step whose loss is not finite is kept, and comes out the same when it is run again."""

import copy
import shutil

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from solo import extensions
from solo.compat import set_progress
from solo.errors import CheckpointError, NonFiniteError
from solo.methods import METHODS
from solo.monitoring.guards import EpochSeeder, NonFiniteGuard
from solo.monitoring.replay import StepKeeper, random_state, set_random_state
from solo.programs.replay import main, replay
from tests.methods.helpers import tiny_cfg, tiny_loaders, tiny_trainer

pytestmark = pytest.mark.unit

KWARGS = {
    "mocov2plus": {"proj_hidden_dim": 8, "proj_output_dim": 6, "temperature": 0.2, "queue_size": 8},
    "dino": {"proj_hidden_dim": 8, "proj_output_dim": 6, "num_prototypes": 5},
    "lejepa": {"proj_hidden_dim": 8, "proj_output_dim": 6, "num_directions": 7},
}


class Overflow(pl.Callback):
    """Makes one weight so large, after some steps, that the next loss is not finite."""

    def __init__(self, step, what="projector.0.weight", value=3e38):
        super().__init__()
        self.step, self.what, self.value = step, what, value

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            with torch.no_grad():
                module.get_parameter(self.what).fill_(self.value)


class Losses(pl.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_before_backward(self, trainer, module, loss):
        self.seen.append(float(loss))


def broken_run(name, folder, step=3, always=None, **overflow):
    torch.manual_seed(0)
    cfg = tiny_cfg(name, copy.deepcopy(KWARGS[name]), seed=4, max_epochs=3)
    model = METHODS[name](cfg)
    keeper, losses = StepKeeper(cfg, folder, always), Losses()
    callbacks = [NonFiniteGuard(keeper=keeper), EpochSeeder(4), keeper]
    callbacks += [Overflow(step, **overflow), losses]
    trainer = tiny_trainer(max_epochs=3, callbacks=callbacks, log_every_n_steps=1)
    with pytest.raises(NonFiniteError) as error:
        trainer.fit(model, *tiny_loaders(steps=2))
    return keeper, str(error.value), losses.seen


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("mocov2plus", "projector.2.weight"),
        ("dino", "head.mlp.0.weight"),
        ("lejepa", "projector.0.weight"),
    ],
)
def test_the_step_is_kept_and_comes_out_the_same(name, what, tmp_path, capsys):
    keeper, message, losses = broken_run(name, tmp_path, what=what)
    assert keeper.folder.name == "not-finite-step=3"
    assert f"python3 -m solo.programs.replay '{keeper.folder}'" in message
    kept = torch.load(keeper.folder / "step.pt", weights_only=True)
    assert (kept["step"], kept["epoch"], kept["batch_idx"], kept["seed"]) == (3, 1, 1, 4)
    assert len(kept["batch"][1]) == 2
    done = replay(keeper.folder)
    assert not np.isfinite(losses[3])
    assert np.array_equal(done.loss, losses[3], equal_nan=True)
    assert done.findings
    assert main([str(keeper.folder)]) == 0
    assert f"loss {done.loss} (in the run: {done.kept})" in capsys.readouterr().out


def test_a_finite_step_is_reproduced_bit_by_bit(tmp_path, monkeypatch):
    """Queues before the step, masks drawn in it, the step's number: all of them matter."""
    for name in KWARGS:
        folder = tmp_path / name

        class KeepsThird(StepKeeper):
            def on_before_backward(self, trainer, pl_module, loss):
                if trainer.global_step == 3 and self.folder is None:
                    self._keep(trainer, pl_module, float(loss))

        torch.manual_seed(0)
        cfg = tiny_cfg(name, copy.deepcopy(KWARGS[name]), seed=4, max_epochs=3)
        keeper = KeepsThird(cfg, folder)
        losses = Losses()
        trainer = tiny_trainer(max_epochs=3, callbacks=[EpochSeeder(4), keeper, losses])
        trainer.fit(METHODS[name](cfg), *tiny_loaders(steps=2))
        assert replay(keeper.folder).loss == losses.seen[3]


SECTIONS = {
    "synccp": {"sparse": {"name": "synccp", "csi": "off", "update_period": 1, "final": 0.5}},
    "sdclr": {"sparse": {"name": "sdclr"}},
    "cdg": {"gating": {"name": "cdg", "groups": 2}},
    "dgc": {"gating": {"name": "dgc"}},
    "fbs": {"gating": {"name": "fbs"}},
}


@pytest.mark.parametrize("name", SECTIONS)
def test_sparse_and_gated_steps_are_reproduced(name, tmp_path):
    """Schedules of gates and masks stand where they stood, too."""

    class KeepsFifth(StepKeeper):
        def on_before_backward(self, trainer, pl_module, loss):
            if trainer.global_step == 5 and self.folder is None:
                self._keep(trainer, pl_module, float(loss))

    torch.manual_seed(0)
    kwargs = {"proj_hidden_dim": 8, "proj_output_dim": 6, "temperature": 0.2}
    cfg = tiny_cfg("simclr", kwargs, seed=4, max_epochs=4, backbone__kwargs={"width": 4})
    cfg.update(SECTIONS[name])
    for extension in extensions.active(cfg):
        extension.parse(cfg)
    keeper, losses = KeepsFifth(cfg, tmp_path), Losses()
    trainer = tiny_trainer(max_epochs=4, callbacks=[EpochSeeder(4), keeper, losses])
    trainer.fit(METHODS["simclr"](cfg), *tiny_loaders(steps=2))
    done = replay(keeper.folder)
    assert done.findings == []
    assert done.loss == pytest.approx(losses.seen[5], rel=1e-6)  # to the rounding of products


def test_images_that_are_not_finite_are_named(tmp_path):
    keeper, _, _ = broken_run("lejepa", tmp_path)
    kept = torch.load(keeper.folder / "step.pt", weights_only=True)
    kept["batch"][1][1][2, 0, 0, 0] = torch.nan
    torch.save(kept, keeper.folder / "step.pt")
    findings = "\n".join(replay(keeper.folder).findings)
    assert "view 1: the images at [2] of the batch are not finite" in findings


def test_nothing_is_kept_of_a_healthy_run_or_when_told_not_to_look(tmp_path):
    keeper, message, _ = broken_run("lejepa", tmp_path, always=False)
    assert keeper.folder is None
    assert "++performance.replay=True" in message
    cfg = tiny_cfg("lejepa", KWARGS["lejepa"])
    keeper = StepKeeper(cfg, tmp_path / "healthy")
    tiny_trainer(callbacks=[keeper]).fit(METHODS["lejepa"](cfg), *tiny_loaders())
    assert not (tmp_path / "healthy").exists()


def test_large_buffers_are_not_copied_in_every_step_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr("solo.monitoring.replay.MOST_BUFFERS", 100)
    keeper, message, _ = broken_run("mocov2plus", tmp_path, what="projector.2.weight")
    assert keeper.folder is None
    assert "++performance.replay=True" in message
    what = {"what": "projector.2.weight"}
    assert broken_run("mocov2plus", tmp_path, always=True, **what)[0].folder is not None


def test_random_states_come_back():
    state = random_state()
    first = (torch.rand(3), np.random.rand(3))
    set_random_state(state)
    assert torch.equal(torch.rand(3), first[0])
    assert np.array_equal(np.random.rand(3), first[1])


def test_a_wrong_folder_is_named(tmp_path, capsys):
    with pytest.raises(CheckpointError, match=r"holds no step.pt"):
        replay(tmp_path)
    assert main([str(tmp_path)]) == 2
    assert "not-finite-step" in capsys.readouterr().err
    shutil.rmtree(tmp_path)


def test_progress_can_be_set():
    class Sees(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            set_progress(trainer, 17, 5)
            assert (trainer.global_step, trainer.current_epoch) == (17, 5)
            trainer.should_stop = True

    cfg = OmegaConf.merge(tiny_cfg("base"), {"max_epochs": 9})
    tiny_trainer(max_epochs=9, callbacks=[Sees()]).fit(METHODS["base"](cfg), *tiny_loaders())
