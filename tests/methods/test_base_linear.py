# SPDX-License-Identifier: MIT
"""LinearModel: optimizers, schedules, mixup, label smoothing, layer decay, few classes."""

import pytest
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, MultiStepLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from solo.backbones import build_encoder
from solo.methods import LinearModel
from solo.utils.lr_scheduler import LinearWarmupCosineAnnealingLR
from tests.methods.helpers import CLASSES, tiny_cfg, tiny_trainer

pytestmark = pytest.mark.unit


def linear(loss_func=None, mixup_func=None, backbone=None, **changes):
    cfg = tiny_cfg("linear", **changes)
    del cfg.optimizer.classifier_lr, cfg.momentum
    backbone = build_encoder(cfg) if backbone is None else backbone
    return LinearModel(backbone, cfg, loss_func=loss_func, mixup_func=mixup_func)


def batch(n=4, classes=CLASSES):
    return torch.randn(n, 3, 8, 8), torch.randint(0, classes, (n,))


def loader(n=8, classes=CLASSES):
    return DataLoader(TensorDataset(*batch(n, classes)), batch_size=4)


class TinyViT(nn.Module):
    """Three layers and a list of what gets no weight decay."""

    num_features = 4

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.norm = nn.Linear(192, 4), nn.Linear(4, 4), nn.LayerNorm(4)

    def no_weight_decay(self):
        return {"stem.weight"}

    def forward(self, x):
        return self.norm(self.block(self.stem(x.flatten(1))))


def test_defaults():
    model = linear()
    cfg = tiny_cfg("linear")
    once = LinearModel.add_and_assert_specific_cfg(cfg).copy()
    assert LinearModel.add_and_assert_specific_cfg(cfg) == once
    assert (once.finetune, once.optimizer.layer_decay) == (False, 0.0)
    assert (model.finetune, model.features_dim, model.layer_decay) == (False, 32, 0.0)
    assert isinstance(model.loss_func, nn.CrossEntropyLoss)
    assert model.mixup_func is None
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone", "classifier"}


def test_learning_rate_is_not_scaled_by_accumulation():
    assert linear(accumulate_grad_batches=4).lr == 0.1


def test_frozen_encoder_stays_as_it_is():
    model = linear()
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    classifier = model.classifier.weight.detach().clone()
    tiny_trainer(max_epochs=1).fit(model, loader(), loader())
    assert all(torch.equal(before[k], v) for k, v in model.backbone.state_dict().items())
    assert not torch.equal(model.classifier.weight, classifier)
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_finetuning_changes_the_encoder():
    model = linear(finetune=True)
    before = model.backbone.conv1.weight.detach().clone()
    tiny_trainer(max_epochs=1).fit(model, loader(), loader())
    assert not torch.equal(model.backbone.conv1.weight, before)


def test_logged_names():
    trainer = tiny_trainer(max_epochs=1)
    trainer.fit(linear(), loader(), loader())
    train = {"train_loss", "train_acc1", "train_acc5"}
    stored = {name + end for name in train for end in ("", "_step", "_epoch")}
    assert set(trainer.callback_metrics) == stored | {"val_loss", "val_acc1", "val_acc5"}


def test_step_and_validation_dictionaries():
    model = linear()
    x, y = batch()
    out = model.eval().shared_step((x, y), 0)
    assert set(out) == {"batch_size", "loss", "acc1", "acc5"}
    torch.testing.assert_close(out["loss"], F.cross_entropy(model(x)["logits"], y))
    metrics = model.validation_step((x, y), 0)
    assert set(metrics) == {"batch_size", "val_loss", "val_acc1", "val_acc5"}
    assert set(model(x)) == {"logits", "feats"}
    assert model.train().training_step((x, y), 0).shape == ()
    assert not model.backbone.training


def test_label_smoothing_acts_in_training_only():
    model = linear(loss_func=LabelSmoothingCrossEntropy(0.3))
    x, y = batch()
    model.backbone.eval()
    log_p = model(x)["logits"].log_softmax(1)
    plain = -log_p[torch.arange(4), y].mean()
    smoothed = 0.7 * plain - 0.3 * log_p.mean()
    torch.testing.assert_close(model.training_step((x, y), 0), smoothed)
    model.eval()
    torch.testing.assert_close(model.validation_step((x, y), 0)["val_loss"], plain)


def test_mixup_acts_in_training_only():
    def swap(x, y):
        soft = F.one_hot(y, CLASSES).float()
        return 0.5 * (x + x.flip(0)), 0.5 * (soft + soft.flip(0))

    model = linear(loss_func=SoftTargetCrossEntropy(), mixup_func=swap)
    x, y = batch()
    model.backbone.eval()
    mixed, soft = swap(x, y)
    expected = -(soft * model(mixed)["logits"].log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model.training_step((x, y), 0), expected)
    assert set(model.shared_step((x, y), 0)) == {"batch_size", "loss"}
    model.eval()
    val = model.validation_step((x, y), 0)
    torch.testing.assert_close(val["val_loss"], F.cross_entropy(model(x)["logits"], y))


def test_mixup_run_logs_no_accuracy():
    def soft(x, y):
        return x, F.one_hot(y, CLASSES).float()

    trainer = tiny_trainer(max_epochs=1)
    trainer.fit(linear(SoftTargetCrossEntropy(), soft), loader(), loader())
    assert "train_acc1" not in trainer.callback_metrics
    assert "train_loss" in trainer.callback_metrics


def test_two_classes():
    model = linear(data__num_classes=2)
    trainer = tiny_trainer(max_epochs=1)
    trainer.fit(model, loader(classes=2), loader(classes=2))
    assert trainer.callback_metrics["val_acc5"] == 100


def test_validation_builds_no_graph():
    model = linear(finetune=True).eval()
    with torch.no_grad():
        assert not model(batch()[0])["feats"].requires_grad


@pytest.mark.parametrize(
    ("name", "kind"),
    [("reduce", ReduceLROnPlateau), ("step", MultiStepLR), ("exponential", ExponentialLR)],
)
def test_schedulers(name, kind):
    model = linear(scheduler__name=name)
    (optimizer,), (scheduler,) = model.configure_optimizers()
    assert isinstance(scheduler, kind)
    assert isinstance(optimizer, torch.optim.SGD)
    if name == "exponential":
        assert scheduler.gamma == model.weight_decay


@pytest.mark.parametrize("name", ["reduce", "step", "exponential", "warmup_cosine", "none"])
def test_every_scheduler_runs(name):
    model = linear(scheduler__name=name)
    tiny_trainer().fit(model, loader(), loader())


def test_scheduler_none_and_warmup_cosine():
    assert isinstance(linear().configure_optimizers(), torch.optim.SGD)
    model = linear(scheduler={"name": "warmup_cosine", "interval": "epoch"})
    _, (config,) = model.configure_optimizers()
    assert isinstance(config["scheduler"], LinearWarmupCosineAnnealingLR)
    assert config["interval"] == "epoch"


def test_unknown_names():
    with pytest.raises(AssertionError, match=r"optimizer\.name='adm'"):
        linear(optimizer__name="adm").configure_optimizers()
    with pytest.raises(ValueError, match=r"scheduler\.name='cosin'"):
        linear(scheduler__name="cosin").configure_optimizers()


def test_missing_key():
    with pytest.raises(AssertionError, match=r"optimizer\.lr is missing"):
        linear(optimizer__lr=None)


# ---- layer decay ----


@pytest.mark.parametrize("scheduler", ["none", "warmup_cosine", "step"])
def test_layer_decay_scales_the_rate_that_steps(scheduler):
    model = linear(
        backbone=TinyViT(),
        finetune=True,
        optimizer__layer_decay=0.5,
        scheduler={"name": scheduler, "interval": "epoch", "warmup_epochs": 1, "min_lr": 0.001},
        max_epochs=5,
    )
    made = model.configure_optimizers()
    optimizer, schedule = (made, None) if scheduler == "none" else (made[0][0], made[1][0])
    schedule = schedule["scheduler"] if isinstance(schedule, dict) else schedule
    scale = {id(model.backbone.stem.weight): 0.25, id(model.backbone.block.weight): 0.5}
    scale[id(model.backbone.norm.weight)] = scale[id(model.classifier.weight)] = 1.0
    for _ in range(4):
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        full = rates[id(model.classifier.weight)]
        assert full > 0
        for parameter, factor in scale.items():
            assert rates[parameter] == pytest.approx(factor * full)
        optimizer.step()
        if schedule is not None:
            schedule.step()


def test_layer_decay_moves_deep_layers_less():
    model = linear(
        backbone=TinyViT(), finetune=True, optimizer__layer_decay=0.5, optimizer__weight_decay=0.0
    )
    optimizer = model.configure_optimizers()
    before = model.backbone.stem.weight.detach().clone()
    x, y = batch()
    model.training_step((x, y), 0).backward()
    gradient = model.backbone.stem.weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(before - model.backbone.stem.weight, 0.1 * 0.25 * gradient)


def test_layer_decay_needs_finetuning_and_a_suitable_encoder():
    with pytest.raises(AssertionError, match="finetune: true"):
        linear(backbone=TinyViT(), optimizer__layer_decay=0.5).configure_optimizers()
    with pytest.raises(AssertionError, match="no_weight_decay"):
        linear(finetune=True, optimizer__layer_decay=0.5).configure_optimizers()
