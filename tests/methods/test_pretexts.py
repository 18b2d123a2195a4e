# SPDX-License-Identifier: MIT
"""RotNet, Exemplar, Supervised and S4L against formulas, and what all pretexts share."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from solo.backbones import BACKBONES, features_dim
from solo.data.datasets.splits import subset_indices
from solo.errors import ConfigError
from solo.losses import exemplar_loss_func
from solo.losses.rotnet import balanced_turns, rotate
from solo.methods import METHODS, NPID, S4L, Exemplar, RotNet, Supervised
from solo.utils.lr_scheduler import WarmupMultiStep
from tests.methods.helpers import tiny_batch, tiny_cfg, tiny_loaders, tiny_trainer

pytestmark = pytest.mark.unit
KWARGS = {
    "rotnet": {},
    "exemplar": {"proj_output_dim": 8},
    "npid": {"proj_output_dim": 8, "nce_k": 6},
    "supervised": {},
    "s4l": {"labelled": 0.5},
}
CROPS = {"exemplar": 2}


def build(name, kwargs=None, **changes):
    torch.manual_seed(3)
    large = CROPS.get(name, 1)
    cfg = tiny_cfg(name, {**KWARGS[name], **(kwargs or {})}, data__num_large_crops=large, **changes)
    return METHODS[name](cfg)


def ready(model, n=16):
    """Make what training would make at its start, without a trainer."""
    if isinstance(model, NPID):
        model.start_bank(n)
    if isinstance(model, S4L):
        model.choose_labelled([i % 4 for i in range(n)])
    return model


# -- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KWARGS)
def test_trains_resumes_and_logs(name, tmp_path):
    large = CROPS.get(name, 1)
    loaders, again = tiny_loaders(steps=4, large=large), tiny_loaders(steps=4, large=large)
    for train, _ in (loaders, again):
        train.dataset.targets = [i % 4 for i in range(16)]
    trainer = tiny_trainer(max_epochs=1)
    model = build(name)
    trainer.fit(model, *loaders)
    metric = {
        "rotnet": "train_rotation_acc",
        "s4l": "train_rotation_loss",
        "exemplar": "train_triplet_loss",
        "npid": "train_npid_loss",
        "supervised": "train_class_loss",
    }[name]
    assert {metric, "val_acc1"} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed, trainer = build(name), tiny_trainer(max_epochs=2)
    trainer.fit(resumed, *again, ckpt_path=tmp_path / "a.ckpt")
    assert trainer.global_step == 8
    if name == "npid":
        assert resumed.bank.shape == (16, 8)


@pytest.mark.parametrize("name", KWARGS)
def test_gradients_reach_encoder_and_heads(name):
    model = ready(build(name))
    batch = tiny_batch(large=CROPS.get(name, 1))
    model.training_step(batch, 0).backward()
    for part in ("backbone", "classifier", *model.HEADS):
        assert all(p.grad is not None and p.grad.any() for p in getattr(model, part).parameters())
    grouped = {id(p) for group in model.learnable_params for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters()}


def test_only_labels_train_the_classifier_as_part_of_the_network():
    for name in ("supervised", "s4l"):
        groups = {group["name"]: group for group in build(name).learnable_params}
        assert "lr" not in groups["classifier"]
        assert "weight_decay" not in groups["classifier"]
    assert "lr" in {g["name"]: g for g in build("rotnet").learnable_params}["classifier"]


# -- rotnet ------------------------------------------------------------------------------------


def test_rotation_is_rot90_for_every_label():
    X = torch.randn(8, 3, 5, 5)
    turns = torch.tensor([0, 1, 2, 3, 3, 1, 0, 2])
    expected = torch.stack([torch.rot90(x, int(k), (1, 2)) for x, k in zip(X, turns, strict=True)])
    assert torch.equal(rotate(X, turns), expected)


def test_rotations_are_balanced_and_random():
    counts = torch.bincount(balanced_turns(10), minlength=4)
    assert sorted(counts.tolist()) == [2, 2, 3, 3]
    torch.manual_seed(0)
    assert not torch.equal(balanced_turns(64), balanced_turns(64))


def test_rotations_need_squares():
    with pytest.raises(ConfigError, match="square images, got 4 x 6"):
        rotate(torch.zeros(1, 3, 4, 6), torch.zeros(1, dtype=torch.long))


class Looks(RotNet):
    """Keeps what the encoder is shown."""

    def forward(self, X):
        self.seen = [*getattr(self, "seen", []), X]
        return super().forward(X)


def looking(**kwargs):
    torch.manual_seed(0)
    return Looks(tiny_cfg("rotnet", kwargs, data__num_large_crops=1))


def test_one_rotation_per_image_and_its_label():
    model, batch = looking(), tiny_batch(n=8, large=1)
    torch.manual_seed(1)
    turns = balanced_turns(8)
    torch.manual_seed(1)
    loss = model.training_step(batch, 0)
    assert torch.equal(model.seen[0], rotate(batch[1][0], turns))
    out = super(Looks, model).forward(model.seen[0])
    expected = F.cross_entropy(out["rotation"], turns) + F.cross_entropy(out["logits"], batch[2])
    torch.testing.assert_close(loss, expected)


def test_all4_shows_every_image_four_times():
    model, batch = looking(all4=True), tiny_batch(n=3, large=1)
    model.training_step(batch, 0)
    shown = model.seen[0].view(4, 3, 3, 8, 8)
    for k in range(4):
        assert torch.equal(shown[k], torch.rot90(batch[1][0], k, (2, 3)))


def test_validation_has_the_same_convention_and_is_deterministic():
    model, (_, (X,), targets) = looking(), tiny_batch(n=6, large=1)
    model.eval()
    metrics = model.validation_step((X, targets), 0)
    assert torch.equal(model.seen[1][1], torch.rot90(X[1], 1, (1, 2)))
    predicted = super(Looks, model).forward(model.seen[1])["rotation"].argmax(1)
    expected = 100 * (predicted == torch.tensor([0, 1, 2, 3, 0, 1])).float().mean()
    torch.testing.assert_close(metrics["val_rotation_acc"][0], expected)


# -- exemplar ----------------------------------------------------------------------------------


def test_exemplar_loss_against_loops():
    torch.manual_seed(0)
    z1, z2 = torch.randn(5, 3), torch.randn(5, 3)
    terms = []
    for a, b in ((z1, z2), (z2, z1)):
        for i in range(5):
            near = 1 - F.cosine_similarity(a[i], b[i], dim=0)
            for j in set(range(5)) - {i}:
                far = 1 - F.cosine_similarity(a[i], b[j], dim=0)
                terms.append(torch.relu(near - far + 0.3))
    torch.testing.assert_close(exemplar_loss_func(z1, z2, margin=0.3), torch.stack(terms).mean())


def test_exemplar_is_zero_when_all_others_are_far():
    z = torch.eye(4)
    assert exemplar_loss_func(z, z, margin=0.5) == 0
    assert isinstance(build("exemplar"), Exemplar)


# -- labels ------------------------------------------------------------------------------------


def test_supervised_gradient_is_that_of_cross_entropy():
    model, batch = build("supervised"), tiny_batch(large=1)
    assert isinstance(model, Supervised)
    loss = model.training_step(batch, 0)
    expected = F.cross_entropy(model.classifier(model.backbone(batch[1][0])), batch[2])
    torch.testing.assert_close(loss, expected)
    for got, wanted in zip(
        torch.autograd.grad(loss, model.backbone.parameters()),
        torch.autograd.grad(expected, model.backbone.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", ["supervised", "s4l"])
def test_labels_are_needed(name):
    with pytest.raises(ConfigError, match=f"{name} learns from labels"):
        build(name, data__no_labels=True)


def test_s4l_uses_labels_of_the_chosen_images_only():
    model, batch = ready(build("s4l"), n=16), tiny_batch(n=4, large=1)
    batch[0] = torch.tensor([0, 5, 9, 14])
    chosen = model.labelled[batch[0]]
    model.labelled[batch[0]] = torch.tensor([True, False, True, False])
    torch.manual_seed(2)
    loss = model.training_step(batch, 0)
    torch.manual_seed(2)
    turns = balanced_turns(4)
    out = S4L.forward(model, rotate(batch[1][0], turns))
    labelled = F.cross_entropy(out["logits"][[0, 2]], batch[2][[0, 2]])
    torch.testing.assert_close(loss, labelled + F.cross_entropy(out["rotation"], turns))
    assert chosen.dtype is torch.bool


def test_s4l_labels_are_those_of_the_subset():
    model = build("s4l", {"labelled": 0.25})
    labels = [i % 4 for i in range(64)]
    model.choose_labelled(labels)
    kept = sorted(subset_indices(64, labels, 0.25))
    assert model.labelled.nonzero().flatten().tolist() == kept
    assert np.bincount([labels[i] for i in kept]).tolist() == [4, 4, 4, 4]
    model = build("s4l", {"labelled": 0.25, "labelled_of": "classes"})
    model.choose_labelled(labels)
    assert int(model.labelled.sum()) == 16
    assert len({labels[i] for i in model.labelled.nonzero().flatten().tolist()}) == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"labelled": 1.5}, "labelled=1.5"), ({"labelled_of": "class"}, "Did you mean 'classes'")],
)
def test_s4l_names_bad_values(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        build("s4l", kwargs)


def test_subset_of_classes_is_fixed_and_needs_labels():
    labels = [i % 10 for i in range(100)]
    kept = subset_indices(100, labels, 0.2, "classes")
    assert len(kept) == 20
    assert (kept == subset_indices(100, labels, 0.2, "classes")).all()
    with pytest.raises(ConfigError, match="needs a data set with labels"):
        subset_indices(100, None, 0.2, "classes")


# -- encoders and schedule ---------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("alexnet", 64), ("vgg19", 16)])
@pytest.mark.parametrize("width", [2])
def test_encoders_train_every_parameter(name, size, width):
    net = BACKBONES[name](width=width)
    out = net(torch.randn(2, 3, size, size))
    assert out.shape == (2, features_dim(net))
    out.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    with pytest.raises(ConfigError, match="Did you mean 'width'"):
        BACKBONES[name](widht=2)


def test_alexnet_refuses_small_images():
    with pytest.raises(ConfigError, match="at least 63 pixels"):
        BACKBONES["alexnet"](width=2)(torch.zeros(2, 3, 32, 32))


def test_warmup_then_steps():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [parameter], "lr": 1.0}], lr=1.0)
    schedule = WarmupMultiStep(optimizer, warmup_epochs=5, milestones=[8, 10])
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    warm = [0.0, 0.25, 0.5, 0.75, 1.0]
    assert rates == pytest.approx([*warm, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])
