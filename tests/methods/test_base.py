# SPDX-License-Identifier: MIT
"""BaseMethod: steps, views, labels, optimizers, checkpoints."""

import io
import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch.optim.lr_scheduler import MultiStepLR

from solo import extensions
from solo.errors import ConfigError
from solo.methods import BaseMethod, SimCLR, SimSiam
from solo.methods.base import BaseMomentumMethod
from solo.utils.lr_scheduler import LinearWarmupCosineAnnealingLR
from solo.utils.views import current_view
from tests.methods.helpers import CLASSES, tiny_batch, tiny_cfg, tiny_loaders, tiny_trainer

pytestmark = pytest.mark.unit

SIMCLR = {"proj_hidden_dim": 8, "proj_output_dim": 6, "temperature": 0.2}
SIMSIAM = {"proj_hidden_dim": 8, "proj_output_dim": 6, "pred_hidden_dim": 5}


# ---- forward and steps ----


def test_forward_keys_and_the_classifier_does_not_train_the_encoder():
    model = BaseMethod(tiny_cfg("base"))
    x = torch.randn(3, 3, 8, 8)
    out = model(x)
    assert {key: tuple(value.shape) for key, value in out.items()} == {
        "logits": (3, CLASSES),
        "feats": (3, 32),
    }
    assert set(model.multicrop_forward(x)) == {"feats"}
    out["logits"].sum().backward()
    assert model.backbone.conv1.weight.grad is None
    assert model.classifier.weight.grad is not None


@pytest.mark.parametrize("disabled", [True, False])
def test_channels_last(disabled):
    model = BaseMethod(tiny_cfg("base", performance__disable_channel_last=disabled))
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.randn(2, 3, 8, 8))
    assert seen[0].is_contiguous(memory_format=torch.channels_last) is not disabled


def test_training_step_dictionary():
    model = BaseMethod(tiny_cfg("base", data__num_small_crops=2))
    batch = tiny_batch(large=2, small=2)
    outs = model.training_step(batch, 0)
    assert set(outs) == {"logits", "feats", "loss", "acc1", "acc5"}
    assert (len(outs["feats"]), len(outs["logits"])) == (4, 2)
    losses = [F.cross_entropy(logits, batch[2]) for logits in outs["logits"]]
    torch.testing.assert_close(outs["loss"], sum(losses) / 2)
    hits = [(logits.argmax(1) == batch[2]).float().mean() * 100 for logits in outs["logits"]]
    torch.testing.assert_close(outs["acc1"], (sum(hits) / 2).reshape(1))


def test_one_bare_view_is_a_list_of_one():
    model = BaseMethod(tiny_cfg("base", data__num_large_crops=1))
    indexes, views, targets = tiny_batch(large=1)
    assert len(model.training_step([indexes, views[0], targets], 0)["feats"]) == 1


def test_wrong_number_of_views():
    model = BaseMethod(tiny_cfg("base"))
    with pytest.raises(AssertionError, match="3 views"):
        model.training_step(tiny_batch(large=3), 0)


def test_views_are_announced():
    cfg = tiny_cfg("base", data__num_small_crops=1)
    model = BaseMomentumMethod(cfg)
    seen = []
    for encoder in (model.backbone, model.momentum_backbone):
        encoder.register_forward_pre_hook(lambda *_: seen.append(current_view()))
    model.training_step(tiny_batch(large=2, small=1), 0)
    online, momentum = [(i, "online") for i in range(3)], [(i, "momentum") for i in range(2)]
    assert seen == online + momentum
    assert current_view() is None
    model.eval()
    seen.clear()
    _, views, targets = tiny_batch()
    model.validation_step((views[0], targets), 0)
    assert set(seen) == {None}


def test_validation_metrics_are_weighted_by_batch_size(monkeypatch):
    model = BaseMethod(tiny_cfg("base")).eval()
    logged = {}
    monkeypatch.setattr(model, "log_dict", lambda log, **_: logged.update(log))
    xs = [torch.randn(4, 3, 8, 8), torch.randn(2, 3, 8, 8)]
    ys = [torch.randint(0, CLASSES, (4,)), torch.randint(0, CLASSES, (2,))]
    for x, y in zip(xs, ys, strict=True):
        metrics = model.validation_step((x, y), 0)
        assert set(metrics) == {"batch_size", "val_loss", "val_acc1", "val_acc5"}
    model.validation_step((xs[0], ys[0]), 0, update_validation_step_outputs=False)
    assert len(model.validation_step_outputs) == 2
    model.on_validation_epoch_end()
    logits = model(torch.cat(xs))["logits"]
    torch.testing.assert_close(logged["val_loss"], F.cross_entropy(logits, torch.cat(ys)))
    correct = (logits.argmax(1) == torch.cat(ys)).float().mean() * 100
    torch.testing.assert_close(logged["val_acc1"], correct)
    assert model.validation_step_outputs == []


def test_logged_names():
    model = BaseMomentumMethod(tiny_cfg("base", momentum__classifier=True))
    # the base methods have no loss of their own; the classifiers' is enough to run
    trainer = tiny_trainer(max_epochs=1)
    trainer.fit(model, *tiny_loaders(steps=2))
    train = [f"train_{m}{x}" for m in ("", "momentum_") for x in ("class_loss", "acc1", "acc5")]
    val = [f"{m}val_{x}" for m in ("", "momentum_") for x in ("loss", "acc1", "acc5")]
    stored = [name + end for name in train for end in ("", "_step", "_epoch")]
    assert set(trainer.callback_metrics) == {*stored, *val, "tau"}


def test_fast_dev_run():
    model = BaseMethod(tiny_cfg("base", scheduler__name="warmup_cosine"))
    tiny_trainer(fast_dev_run=True).fit(model, *tiny_loaders())


# ---- labels ----


def test_without_labels_the_classifier_is_off():
    cfg = tiny_cfg("simclr", SIMCLR, data__no_labels=True)
    model = SimCLR(cfg)
    indexes, views, targets = tiny_batch()
    batch = [indexes, views, torch.full_like(targets, -1)]
    loss = model.training_step(batch, 0)
    z = torch.cat([model(view)["z"] for view in views])
    from solo.losses import simclr_loss_func

    torch.testing.assert_close(loss, simclr_loss_func(z, indexes.repeat(2), 0.2))
    loss.backward()
    assert torch.equal(model.classifier.weight.grad, torch.zeros(CLASSES, 32))


def test_all_targets_unknown_logs_no_class_metrics():
    model = SimCLR(tiny_cfg("simclr", SIMCLR))
    loader, _ = tiny_loaders(steps=2)
    loader.dataset.items = [(i, views, torch.tensor(-1)) for i, views, _ in loader.dataset.items]
    trainer = tiny_trainer(max_epochs=1)
    trainer.fit(model, loader)
    assert {name for name in trainer.callback_metrics if "class" in name or "acc" in name} == set()
    assert trainer.callback_metrics["train_nce_loss"].isfinite()


def test_partly_labelled_batches_count_the_labelled_rows():
    model = BaseMethod(tiny_cfg("base", data__num_large_crops=1))
    indexes, views, targets = tiny_batch(n=6, large=1)
    targets[2:] = -1
    outs = model.training_step([indexes, views, targets], 0)
    expected = F.cross_entropy(outs["logits"][0][:2], targets[:2])
    torch.testing.assert_close(outs["loss"], expected)


def test_labels_are_looked_at_before_they_leave_the_host():
    model = BaseMethod(tiny_cfg("base")).train()
    batch = tiny_batch()
    assert model.on_before_batch_transfer(batch, 0) is batch
    assert model._labelled
    model.on_before_batch_transfer([*batch[:2], torch.full((4,), -1)], 0)
    assert not model._labelled


# ---- optimizers ----


def test_unknown_optimizer_and_scheduler():
    model = BaseMethod(tiny_cfg("base", optimizer__name="sdg"))
    with pytest.raises(AssertionError, match=r"optimizer\.name='sdg'.*'sgd'"):
        model.configure_optimizers()
    for name in ("reduce", "exponential", "cosine"):
        model = BaseMethod(tiny_cfg("base", scheduler__name=name))
        with pytest.raises(ValueError, match=f"scheduler.name='{name}'"):
            model.configure_optimizers()
    with pytest.raises(AssertionError, match="interval"):
        BaseMethod(tiny_cfg("base", scheduler__interval="minute"))


@pytest.mark.parametrize("steps", [60, "60,80", ["60"]])
def test_epochs_of_a_step_schedule_are_a_list_of_numbers(steps):
    with pytest.raises(ConfigError, match=r"lr_decay_steps must be a list of epochs, got"):
        BaseMethod(tiny_cfg("base", scheduler__lr_decay_steps=steps))


@pytest.mark.parametrize("name", ["sgd", "lars", "adam", "adamw"])
def test_optimizers(name):
    model = BaseMethod(tiny_cfg("base", optimizer__name=name))
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, BaseMethod._OPTIMIZERS[name])
    backbone, classifier = optimizer.param_groups
    assert (backbone["lr"], backbone["weight_decay"]) == (0.1, 1e-4)
    assert (classifier["lr"], classifier["weight_decay"]) == (0.2, 0)


def test_step_scheduler_works_without_steps():
    cfg = tiny_cfg("base", scheduler__name="step")
    _, (scheduler,) = BaseMethod(cfg).configure_optimizers()
    assert isinstance(scheduler, MultiStepLR)
    cfg.scheduler.lr_decay_steps = [3, 5]
    _, (scheduler,) = BaseMethod(cfg).configure_optimizers()
    assert sorted(scheduler.milestones) == [3, 5]
    assert scheduler.gamma == 0.1


@pytest.mark.parametrize(("interval", "warmup", "total"), [("step", 15, 30), ("epoch", 1, 2)])
def test_warmup_cosine(interval, warmup, total):
    cfg = tiny_cfg("base", scheduler={"name": "warmup_cosine", "interval": interval})
    cfg.scheduler.warmup_epochs = 1
    cfg.scheduler.min_lr = 0.01
    model = BaseMethod(cfg)

    class Trainer:
        estimated_stepping_batches = 30

    model._trainer = Trainer()
    _, (config,) = model.configure_optimizers()
    scheduler = config["scheduler"]
    assert (config["interval"], config["frequency"]) == (interval, 1)
    assert isinstance(scheduler, LinearWarmupCosineAnnealingLR)
    assert (scheduler.warmup_epochs, scheduler.max_epochs) == (warmup, total)
    assert (scheduler.warmup_start_lr, scheduler.eta_min) == (3e-5, 0.01)


def test_static_predictor_rate_reaches_the_optimizer():
    cfg = tiny_cfg(
        "simsiam", SIMSIAM, scheduler__name="step", optimizer__exclude_bias_n_norm_wd=True
    )
    cfg.scheduler.lr_decay_steps = [1]
    (optimizer,), (scheduler,) = SimSiam(cfg).configure_optimizers()
    optimizer.step()
    scheduler.step()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["predictor"] == rates["predictor_no_decay"] == 0.1
    assert rates["projector"] == rates["backbone"] == pytest.approx(0.01)
    assert all("static_lr" not in group for group in optimizer.param_groups)


def test_gradients_are_dropped():
    model = BaseMethod(tiny_cfg("base"))
    optimizer = model.configure_optimizers()
    model.training_step(tiny_batch(), 0)["loss"].backward()
    model.optimizer_zero_grad(0, 0, optimizer)
    assert model.classifier.weight.grad is None


# ---- extensions ----


def test_extensions_patch_both_encoders_and_bring_callbacks(monkeypatch):
    callback = pl.Callback()

    class Probe(extensions.Extension):
        sections = ("probe",)

        def patch_backbone(self, backbone, cfg):
            backbone.patched = cfg.probe
            return backbone

        def callbacks(self, module, cfg):
            return [callback]

    monkeypatch.setattr(extensions, "_EXTENSIONS", {"Probe": Probe()})
    model = BaseMomentumMethod(tiny_cfg("base", probe=3))
    assert model.backbone.patched == model.momentum_backbone.patched == 3
    assert model.configure_callbacks() == [callback]
    assert BaseMethod(tiny_cfg("base")).configure_callbacks() == []


# ---- checkpoints ----


def simsiam_checkpoint(tmp_path, epochs=1):
    model = SimSiam(tiny_cfg("simsiam", SIMSIAM, scheduler__name="warmup_cosine"))
    trainer = tiny_trainer(max_epochs=epochs)
    trainer.fit(model, tiny_loaders()[0])
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def test_simsiam_checkpoint_loads_with_weights_only(tmp_path):
    checkpoint = torch.load(simsiam_checkpoint(tmp_path), weights_only=True)
    assert "get_lr" not in checkpoint["lr_schedulers"][0]
    assert not any(OmegaConf.is_config(v) for g in checkpoint["optimizer_states"] for v in g)


def test_upstream_leftovers_are_dropped_and_old_names_mapped():
    model = SimSiam(tiny_cfg("simsiam", SIMSIAM))
    state = model.state_dict()
    old = {key.replace("backbone.", "encoder."): value for key, value in state.items()}
    checkpoint = {"state_dict": old, "lr_schedulers": [{"get_lr": print, "base_lrs": [1.0]}]}
    model.on_load_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == set(state)
    assert checkpoint["lr_schedulers"] == [{"base_lrs": [1.0]}]


def test_configuration_leaves_no_omegaconf_in_the_optimizer():
    cfg = tiny_cfg("base", optimizer__name="adamw", optimizer__kwargs={"betas": [0.9, 0.95]})
    optimizer = BaseMethod(cfg).configure_optimizers()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert list(torch.load(file, weights_only=True)["param_groups"][0]["betas"]) == [0.9, 0.95]


def test_no_warning_at_construction():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BaseMethod(tiny_cfg("base"))


def test_online_knn_counts_the_large_crops():
    cfg = tiny_cfg("base", data__num_small_crops=1)
    cfg.knn_eval = {"enabled": True, "k": 1, "distance_func": "euclidean"}
    model = BaseMethod(cfg)
    seen = []
    update = model.knn.update
    model.knn.update = lambda **kwargs: (seen.append(kwargs), update(**kwargs))[1]
    trainer = tiny_trainer(max_epochs=1, num_sanity_val_steps=1)
    trainer.fit(model, *tiny_loaders(steps=2, small=1))
    train = [call["train_features"] for call in seen if "train_features" in call]
    test = [call["test_features"] for call in seen if "test_features" in call]
    assert [tuple(x.shape) for x in train] == [(8, 32)] * 2
    # two validation batches, none of the sanity check
    assert [tuple(x.shape) for x in test] == [(4, 32)] * 2
    assert not any(x.requires_grad for x in train + test)
    assert 0 <= trainer.callback_metrics["val_knn_acc1"] <= 100
    assert "val_knn_acc5" in trainer.callback_metrics
    assert not any(key.startswith("knn") for key in model.state_dict())
