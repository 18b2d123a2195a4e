# SPDX-License-Identifier: MIT
"""BaseMomentumMethod: the momentum update, its schedule, and exact resuming."""

import copy
import math

import lightning.pytorch as pl
import pytest
import torch

from solo.methods import BYOL, MoCoV2Plus
from solo.methods.base import BaseMomentumMethod
from tests.methods.helpers import CLASSES, tiny_batch, tiny_cfg, tiny_loaders, tiny_trainer

pytestmark = pytest.mark.unit

BYOL_KWARGS = {"proj_hidden_dim": 8, "proj_output_dim": 6, "pred_hidden_dim": 5}
MOCO_KWARGS = {"proj_hidden_dim": 8, "proj_output_dim": 6, "temperature": 0.2, "queue_size": 16}


def byol(**changes):
    return BYOL(tiny_cfg("byol", BYOL_KWARGS, scheduler__name="warmup_cosine", **changes))


def test_momentum_section_defaults():
    cfg = tiny_cfg("base")
    del cfg.momentum
    model = BaseMomentumMethod(cfg)
    taus = {"base_tau": 0.99, "final_tau": 1.0}
    assert cfg.momentum == {**taus, "classifier": False, "schedule": None}
    assert (model.momentum_updater.base_tau, model.momentum_updater.final_tau) == (0.99, 1.0)
    assert model.momentum_classifier is None


def test_bad_taus_are_a_named_error():
    with pytest.raises(AssertionError, match=r"momentum\.final_tau=0\.5"):
        BaseMomentumMethod(tiny_cfg("base", momentum__final_tau=0.5))


def test_momentum_copy_and_groups():
    model = byol(momentum__classifier=True)
    names = [group["name"] for group in model.learnable_params]
    heads = ("projector", "predictor")
    assert names == ["backbone", "classifier", "momentum_classifier", *heads]
    assert model.momentum_pairs == [
        (model.backbone, model.momentum_backbone),
        (model.projector, model.momentum_projector),
    ]
    for online, momentum in model.momentum_pairs:
        for p, m in zip(online.parameters(), momentum.parameters(), strict=True):
            assert torch.equal(p, m)
            assert not m.requires_grad


def test_training_step_dictionary_and_class_losses():
    model = BaseMomentumMethod(tiny_cfg("base", momentum__classifier=True, data__num_small_crops=1))
    batch = tiny_batch(large=2, small=1)
    plain = BaseMomentumMethod.training_step(copy.deepcopy(model), batch, 0)
    keys = {"logits", "feats", "loss", "acc1", "acc5"}
    assert set(plain) == keys | {f"momentum_{key}" for key in keys}
    assert len(plain["momentum_feats"]) == 2
    classifier = model.momentum_classifier
    losses = [
        torch.nn.functional.cross_entropy(classifier(feats), batch[2])
        for feats in plain["momentum_feats"]
    ]
    torch.testing.assert_close(plain["momentum_loss"], sum(losses) / 2)
    assert not any(feats.requires_grad for feats in plain["momentum_feats"])
    model.momentum_classifier = None
    without = model.training_step(batch, 0)
    torch.testing.assert_close(plain["loss"] - without["loss"], plain["momentum_loss"])
    assert set(without) == keys | {"momentum_feats"}


def test_validation_returns_one_dictionary():
    model = BaseMomentumMethod(tiny_cfg("base", momentum__classifier=True)).eval()
    metrics = model.validation_step((torch.randn(4, 3, 8, 8), torch.randint(0, CLASSES, (4,))), 0)
    names = ("val_loss", "val_acc1", "val_acc5")
    assert set(metrics) == {"batch_size", *names, *(f"momentum_{name}" for name in names)}
    assert model.validation_step_outputs == [metrics]


class _Record(pl.Callback):
    """Online and momentum weights and tau, before each optimizer step and after each batch."""

    def __init__(self):
        self.online, self.momentum, self.taus, self.steps = [], [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.taus.append(module.momentum_updater.cur_tau)
        self.momentum.append(module.momentum_projector[0].weight.detach().clone())
        self.steps.append(trainer.global_step)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        # callbacks run before the module's own hook, so this is what the update sees
        self.online.append(module.projector[0].weight.detach().clone())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_update_per_optimizer_step(accumulate):
    model, record = byol(accumulate_grad_batches=accumulate), _Record()
    trainer = tiny_trainer(callbacks=[record], accumulate_grad_batches=accumulate)
    trainer.fit(model, tiny_loaders(steps=4)[0])
    total = 8 // accumulate
    final = model.momentum_projector[0].weight.detach()
    momentum = [*record.momentum, final]
    for batch in range(8):
        stepped = (batch + 1) % accumulate == 0
        if stepped:
            tau = record.taus[batch]
            done = batch // accumulate
            assert tau == pytest.approx(1 - 0.1 * (math.cos(math.pi * done / total) + 1) / 2)
            expected = tau * momentum[batch] + (1 - tau) * record.online[batch]
            torch.testing.assert_close(momentum[batch + 1], expected)
            assert not torch.equal(momentum[batch + 1], momentum[batch])
        else:
            assert torch.equal(momentum[batch + 1], momentum[batch])
    assert model.momentum_updater.cur_tau == pytest.approx(1.0)


# ---- resuming ----


class _SaveAt(pl.Callback):
    """Saves where Lightning's own ModelCheckpoint would: before the module's batch-end hook."""

    def __init__(self, batch, path):
        self.batch, self.path, self.seen = batch, path, 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen += 1
        if self.seen == self.batch:
            trainer.save_checkpoint(self.path)


class _SaveAtEpoch(pl.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


def same_state(a, b):
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    return all(torch.equal(left[key], right[key]) for key in left)


def moco():
    torch.manual_seed(3)
    return MoCoV2Plus(tiny_cfg("mocov2plus", MOCO_KWARGS, scheduler__name="warmup_cosine"))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("where", ["epoch", "mid"])
def test_resume_equals_a_straight_run(tmp_path, where, accumulate):
    path = tmp_path / "half.ckpt"
    save = _SaveAtEpoch(path) if where == "epoch" else _SaveAt(6, path)
    settings = {"max_epochs": 3, "accumulate_grad_batches": accumulate}
    loader, _ = tiny_loaders(steps=4)
    # Lightning starts a half-done epoch from its first batch, so make all batches the same
    loader.dataset.items = loader.dataset.items[:4] * 4
    straight = moco()
    tiny_trainer(callbacks=[save], **settings).fit(straight, loader)
    resumed = moco()
    tiny_trainer(**settings).fit(resumed, loader, ckpt_path=path)
    assert same_state(straight, resumed)
    assert resumed.momentum_updater.cur_tau == straight.momentum_updater.cur_tau
    assert resumed.last_step == straight.last_step


def test_checkpoint_carries_tau_and_the_last_step(tmp_path):
    model = moco()
    trainer = tiny_trainer(max_epochs=1)
    trainer.fit(model, tiny_loaders(steps=4)[0])
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert checkpoint["momentum_state"] == {
        "cur_tau": model.momentum_updater.cur_tau,
        "last_step": 4,
    }


def test_a_file_without_our_record_takes_tau_from_the_step(tmp_path):
    model = moco()
    trainer = tiny_trainer(max_epochs=2)
    trainer.fit(model, tiny_loaders(steps=4)[0])
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=False)
    del checkpoint["momentum_state"]
    torch.save(checkpoint, tmp_path / "x.ckpt")

    class Look(pl.Callback):
        tau = None

        def on_train_epoch_start(self, trainer, module):
            if self.tau is None:
                self.tau, self.step = module.momentum_updater.cur_tau, module.last_step

    look = Look()
    trainer = tiny_trainer(max_epochs=4, callbacks=[look])
    trainer.fit(moco(), tiny_loaders(steps=4)[0], ckpt_path=tmp_path / "x.ckpt")
    assert look.step == 8
    assert look.tau == pytest.approx(1 - 0.1 * (math.cos(math.pi * 8 / 16) + 1) / 2)
