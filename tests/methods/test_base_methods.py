# SPDX-License-Identifier: MIT
"""Each method's loss and gradients against formulas written here, and its interface."""

import copy

import pytest
import torch
import torch.nn.functional as F

from solo.methods import METHODS
from tests.methods.helpers import CLASSES, tiny_batch, tiny_cfg, tiny_loaders, tiny_trainer

pytestmark = pytest.mark.unit

HEAD = {"proj_hidden_dim": 8, "proj_output_dim": 6}
KWARGS = {
    "simclr": {**HEAD, "temperature": 0.2},
    "simsiam": {**HEAD, "pred_hidden_dim": 5},
    "byol": {**HEAD, "pred_hidden_dim": 5},
    "mocov2plus": {**HEAD, "temperature": 0.2, "queue_size": 16},
    "mocov3": {**HEAD, "pred_hidden_dim": 5, "temperature": 0.3},
    "barlow_twins": HEAD,
    "vicreg": HEAD,
}
MOMENTUM = {"byol", "mocov2plus", "mocov3"}
FORWARD = {
    "simclr": {"z": 6},
    "simsiam": {"z": 6, "p": 6},
    "byol": {"z": 6, "p": 6},
    "mocov2plus": {"z": 6},
    "mocov3": {"z": 6, "q": 6},
    "barlow_twins": {"z": 6},
    "vicreg": {"z": 6},
}
MOMENTUM_FORWARD = {"byol": {"z"}, "mocov2plus": {"z"}, "mocov3": {"k"}}
LOGGED = {
    "simclr": {"train_nce_loss"},
    "simsiam": {"train_neg_cos_sim", "train_z_std"},
    "byol": {"train_neg_cos_sim", "train_z_std"},
    "mocov2plus": {"train_nce_loss"},
    "mocov3": {"train_contrastive_loss"},
    "barlow_twins": {"train_barlow_loss"},
    "vicreg": {"train_vicreg_loss"},
}
BN = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def keys(module, **layers):
    """State-dict keys of a sequential: index (with a leading _) to its tensors."""
    return {f"{module}.{i[1:]}.{name}" for i, names in layers.items() for name in names}


LINEAR, NO_BIAS, PLAIN_BN = ["weight", "bias"], ["weight"], BN[2:]
SIMCLR_HEAD = {"_0": LINEAR, "_2": LINEAR}
BYOL_HEAD = {"_0": LINEAR, "_1": BN, "_3": LINEAR}
MOCOV3_HEAD = {"_0": NO_BIAS, "_1": BN, "_3": NO_BIAS, "_4": PLAIN_BN}
DEEP_HEAD = {"_0": LINEAR, "_1": BN, "_3": LINEAR, "_4": BN, "_6": LINEAR}
STATE = {
    "simclr": keys("projector", **SIMCLR_HEAD),
    "simsiam": keys("projector", _0=NO_BIAS, _1=BN, _3=NO_BIAS, _4=BN, _6=LINEAR, _7=PLAIN_BN)
    | keys("predictor", _0=NO_BIAS, _1=BN, _3=LINEAR),
    "byol": keys("projector", **BYOL_HEAD)
    | keys("momentum_projector", **BYOL_HEAD)
    | keys("predictor", **BYOL_HEAD),
    "mocov2plus": keys("projector", **SIMCLR_HEAD)
    | keys("momentum_projector", **SIMCLR_HEAD)
    | {"queue", "queue_ptr"},
    "mocov3": keys("projector", **MOCOV3_HEAD)
    | keys("momentum_projector", **MOCOV3_HEAD)
    | keys("predictor", _0=NO_BIAS, _1=BN, _3=NO_BIAS),
    "barlow_twins": keys("projector", **DEEP_HEAD),
    "vicreg": keys("projector", **DEEP_HEAD),
}


def build(name, **changes):
    torch.manual_seed(1)
    return METHODS[name](tiny_cfg(name, KWARGS[name], **changes))


# ---- the formulas ----


def simclr(model, views, momentum, indexes):
    z = F.normalize(torch.cat([view["z"] for view in views]), dim=1)
    owner = indexes.repeat(len(views))
    total = 0
    for i in range(len(z)):
        e = (z @ z[i] / 0.2).exp()
        others = [j for j in range(len(z)) if j != i]
        positives = sum(e[j] for j in others if owner[j] == owner[i])
        total = total - (positives / sum(e[j] for j in others)).log()
    return total / len(z)


def cosine(a, b):
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def simsiam(model, views, momentum, indexes):
    (a, b) = views
    return -(cosine(a["p"], b["z"].detach()) + cosine(b["p"], a["z"].detach())).mean() / 2


def byol(model, views, momentum, indexes):
    total = 0
    for i, target in enumerate(momentum):
        for j, view in enumerate(views):
            if i != j:
                total = total + (2 - 2 * cosine(view["p"], target["z"])).mean()
    return total


def mocov2plus(model, views, momentum, indexes):
    total = 0
    for i, j in ((0, 1), (1, 0)):
        q, k, queue = views[i]["z"], momentum[j]["z"], model.queue[j]
        positive = ((q * k).sum(1) / 0.2).exp()
        negatives = (q @ queue / 0.2).exp().sum(1)
        total = total - (positive / (positive + negatives)).log().mean() / 2
    return total


def mocov3(model, views, momentum, indexes):
    total = 0
    for i, j in ((0, 1), (1, 0)):
        q, k = F.normalize(views[i]["q"]), F.normalize(momentum[j]["k"])
        e = (q @ k.T / 0.3).exp()
        total = total - 2 * 0.3 * (e.diagonal() / e.sum(1)).log().mean()
    return total


def barlow_twins(model, views, momentum, indexes):
    def standardise(z):
        return (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()

    a, b = (standardise(view["z"]) for view in views)
    c = a.T @ b / len(a)
    total = 0
    for i in range(len(c)):
        for j in range(len(c)):
            total = total + ((c[i, j] - 1) ** 2 if i == j else 0.0051 * c[i, j] ** 2)
    return 0.024 * total


def vicreg(model, views, momentum, indexes):
    a, b = (view["z"] for view in views)
    total = 25 * ((a - b) ** 2).mean()
    for z in (a, b):
        total = total + 25 * F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
        c = torch.cov(z.T)
        total = total + ((c**2).sum() - (c.diagonal() ** 2).sum()) / len(c)
    return total


FORMULAS = {
    "simclr": simclr,
    "simsiam": simsiam,
    "byol": byol,
    "mocov2plus": mocov2plus,
    "mocov3": mocov3,
    "barlow_twins": barlow_twins,
    "vicreg": vicreg,
}


def gradients(model, loss):
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "small"), [*((name, 0) for name in KWARGS), ("simclr", 2), ("byol", 2)]
)
def test_loss_and_gradients_equal_the_formula(name, small):
    model = build(name, data__num_small_crops=small).double()
    if name in MOMENTUM:  # so that online and momentum networks differ
        for _, net in model.momentum_pairs:
            for p in net.parameters():
                p.data.add_(0.1 * torch.randn_like(p))
    reference = copy.deepcopy(model)
    indexes, views, targets = tiny_batch(n=4, small=small)
    views = [view.double() for view in views]
    loss = model.training_step([indexes, views, targets], 0)
    assert loss.shape == ()

    online = [reference(view) for view in views[:2]]
    online += [reference.multicrop_forward(view) for view in views[2:]]
    momentum = []
    if name in MOMENTUM:
        momentum = [reference.momentum_forward(view) for view in views[:2]]
    class_loss = sum(F.cross_entropy(view["logits"], targets) for view in online[:2]) / 2
    expected = FORMULAS[name](reference, online, momentum, indexes) + class_loss
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-10)
    got, wanted = gradients(model, loss), gradients(reference, expected)
    assert got.keys() == wanted.keys()
    for parameter in wanted:
        torch.testing.assert_close(got[parameter], wanted[parameter], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", KWARGS)
def test_forward_dictionaries(name):
    model = build(name)
    x = torch.randn(3, 3, 8, 8)
    shapes = {key: tuple(value.shape) for key, value in model(x).items()}
    wanted = {key: (3, width) for key, width in FORWARD[name].items()}
    assert shapes == {"logits": (3, CLASSES), "feats": (3, 32), **wanted}
    small = {"simclr": {"feats", "z"}, "byol": {"feats", "z", "p"}}.get(name, {"feats"})
    assert set(model.multicrop_forward(x)) == small
    if name in MOMENTUM:
        out = model.momentum_forward(x)
        assert set(out) == {"feats"} | MOMENTUM_FORWARD[name]
        assert not any(value.requires_grad for value in out.values())


@pytest.mark.parametrize("name", KWARGS)
def test_state_dict_keys(name):
    state = set(build(name).state_dict())
    assert {"classifier.weight", "classifier.bias", "backbone.conv1.weight"} <= state
    roots = ("backbone.", "momentum_backbone.", "classifier.")
    encoder = {key.split(".", 1)[1] for key in state if key.startswith("backbone.")}
    copied = {key.split(".", 1)[1] for key in state if key.startswith("momentum_backbone.")}
    assert copied == (encoder if name in MOMENTUM else set())
    assert {key for key in state if not key.startswith(roots)} == STATE[name]


@pytest.mark.parametrize("name", KWARGS)
def test_parameter_groups(name):
    model = build(name)
    groups = {group["name"]: group for group in model.learnable_params}
    heads = {key.split(".")[0] for key in STATE[name] if "." in key} - {"momentum_projector"}
    assert set(groups) == {"backbone", "classifier", *heads}
    assert groups["classifier"]["lr"] == 0.2
    assert groups["classifier"]["weight_decay"] == 0
    assert groups.get("predictor", {}).get("static_lr", False) is (name == "simsiam")
    trained = [id(p) for group in model.learnable_params for p in group["params"]]
    assert len(trained) == len(set(trained))
    frozen_by_design = {"projector.6.bias"} if name == "simsiam" else set()
    for parameter_name, p in model.named_parameters():
        assert (id(p) in trained) is not parameter_name.startswith("momentum_")
        if id(p) in trained:
            assert p.requires_grad is (parameter_name not in frozen_by_design)


@pytest.mark.parametrize("name", KWARGS)
def test_a_run_logs_by_name_and_changes_the_encoder(name):
    model = build(name, scheduler__name="warmup_cosine", optimizer__name="lars")
    before = model.backbone.conv1.weight.detach().clone()
    trainer = tiny_trainer(max_epochs=2)
    trainer.fit(model, *tiny_loaders(steps=2))
    own = {"train_class_loss", "train_acc1", "train_acc5", *LOGGED[name]}
    stored = {n + end for n in own for end in ("", "_step", "_epoch")}
    tau = {"tau"} if name in MOMENTUM else set()
    assert set(trainer.callback_metrics) == stored | tau | {"val_loss", "val_acc1", "val_acc5"}
    assert not torch.equal(model.backbone.conv1.weight, before)


@pytest.mark.parametrize("name", KWARGS)
def test_specific_cfg_is_idempotent(name):
    model = build(name)
    before = copy.deepcopy(model.cfg)
    assert model.add_and_assert_specific_cfg(model.cfg) == before


@pytest.mark.parametrize("name", KWARGS)
def test_each_required_kwarg_is_asked_for(name):
    required = [key for key, kind in METHODS[name].KWARGS.items() if isinstance(kind, type)]
    assert required
    for key in required:
        kwargs = {k: v for k, v in KWARGS[name].items() if k != key}
        with pytest.raises(AssertionError, match=f"method_kwargs.{key} is missing"):
            METHODS[name](tiny_cfg(name, kwargs))


def test_defaults_of_method_kwargs():
    moco = {k: v for k, v in KWARGS["mocov2plus"].items() if k != "queue_size"}
    assert METHODS["mocov2plus"](tiny_cfg("mocov2plus", moco)).queue_size == 65536
    barlow = build("barlow_twins")
    assert (barlow.lamb, barlow.scale_loss) == (0.0051, 0.024)
    vicreg = build("vicreg")
    weights = (vicreg.sim_loss_weight, vicreg.var_loss_weight, vicreg.cov_loss_weight)
    assert weights == (25, 25, 1)


def test_moco_queue_takes_both_views_keys():
    model = build("mocov2plus")
    indexes, views, targets = tiny_batch(n=4)
    before = model.queue.clone()
    expected = torch.stack([copy.deepcopy(model).momentum_forward(v)["z"].T for v in views])
    model.training_step([indexes, views, targets], 0)
    torch.testing.assert_close(model.queue[:, :, :4], expected)
    assert torch.equal(model.queue[:, :, 4:], before[:, :, 4:])
    torch.testing.assert_close(model.queue.norm(dim=1), torch.ones(2, 16))


def test_mocov3_heads_on_a_vit_are_deeper():
    cfg = tiny_cfg("mocov3", KWARGS["mocov3"])
    cfg.backbone = {"name": "vit_tiny", "kwargs": {"img_size": 8, "patch_size": 4, "depth": 1}}
    model = METHODS["mocov3"](cfg)
    kinds = [type(layer).__name__ for layer in model.projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    assert [type(layer).__name__ for layer in model.predictor][-1] == "BatchNorm1d"
    assert not model.predictor[-1].affine
    assert model(torch.randn(2, 3, 8, 8))["q"].shape == (2, 6)
