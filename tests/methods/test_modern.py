# SPDX-License-Identifier: MIT
"""DINO as published, iBOT, DINOv2 and I-JEPA: losses from their parts, options, mistakes."""

import copy

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F

from solo.errors import ConfigError
from solo.methods import METHODS
from solo.utils.views import encoding
from tests.methods.helpers import tiny_batch, tiny_cfg, tiny_trainer
from tests.methods.vit_models import HEAD, JEPA, batch_of, build, loaders

pytestmark = pytest.mark.unit

# ---- the losses ----


def cls_loss(student, teacher, temperature=0.07):
    """Mean over teacher's views i, student's views j != i and images; the centre is still 0."""
    terms = [
        -(F.softmax(t / temperature, 1) * F.log_softmax(s / 0.1, 1)).sum(1).mean()
        for i, t in enumerate(teacher)
        for j, s in enumerate(student)
        if i != j
    ]
    return sum(terms) / len(terms)


def class_loss(model, views, targets):
    return sum(F.cross_entropy(model.classifier(f), targets) for f in views) / len(views)


def test_dino_with_local_crops():
    model = build("dino", small=3, kwargs={"local_crops": True})
    batch = batch_of(small=3)
    reference = copy.deepcopy(model)
    views = batch[1]
    feats = [reference.backbone(v) for v in views]
    student = [reference.head(f) for f in feats]
    teacher = [reference.momentum_head(reference.momentum_backbone(v)) for v in views[:2]]
    expected = cls_loss(student, [t.detach() for t in teacher])
    expected = expected + class_loss(reference, [f.detach() for f in feats[:2]], batch[2])
    loss = model.training_step(batch, 0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(
        model.backbone.patch_embed.proj.weight.grad, reference.backbone.patch_embed.proj.weight.grad
    )
    mean = torch.cat(teacher).mean(0, keepdim=True)
    torch.testing.assert_close(model.dino_loss_func.center, 0.1 * mean.detach())


def by_hand(model, x, hidden):
    """Class token and patches of a ViT whose hidden patches are the token, in timm's own parts."""
    vit = model.backbone
    patches = vit.patch_embed(x).flatten(1, 2)
    patches = torch.where(hidden[..., None], model.mask_token.token, patches)
    tokens = torch.cat([vit.cls_token.expand(len(x), -1, -1), patches], 1) + vit.pos_embed
    tokens = vit.norm(vit.blocks(tokens))
    return tokens[:, 0], tokens[:, 1:]


@pytest.mark.parametrize("name", ["ibot", "dinov2"])
@pytest.mark.parametrize("shared", [True, False])
def test_ibot_and_dinov2_from_their_parts(name, shared):
    model = build(name, small=2, kwargs={"shared_head": shared, "patch_loss_weight": 0.7})
    batch = batch_of(small=2)
    reference = copy.deepcopy(model)
    views = batch[1]
    masks = [model.hide(v, i, 0).mask for i, v in enumerate(views[:2])]
    assert [int(m.any(1).sum()) for m in masks] == [2, 2]  # half of the images

    patch_head = reference.head if shared else reference.patch_head
    teacher_patch_head = reference.momentum_head if shared else reference.momentum_patch_head
    student, feats, patches, teacher_patches, teacher = [], [], [], [], []
    for view, mask in zip(views[:2], masks, strict=True):
        cls, tokens = by_hand(reference, view, mask)
        feats.append(cls)
        student.append(reference.head(cls))
        patches.append(patch_head(tokens[mask]))
        with torch.no_grad():
            tokens = reference.momentum_backbone.forward_features(view)
            teacher.append(reference.momentum_head(tokens[:, 0]))
            teacher_patches.append(teacher_patch_head(tokens[:, 1:][mask]))
    student += [reference.head(reference.backbone(v)) for v in views[2:]]

    def targets(outputs):
        joined = torch.cat(outputs)
        if name == "ibot":
            probabilities = F.softmax(joined / 0.07, 1)
        else:
            q = (joined / 0.07).exp().T
            for _ in range(3):
                q = q / q.sum(1, keepdim=True) / len(q)
                q = q / q.sum(0, keepdim=True) / q.shape[1]
            probabilities = (q * q.shape[1]).T
        return probabilities.split([len(o) for o in outputs])

    expected, t = 0, targets(teacher)
    pairs = [(i, j) for i in range(2) for j in range(4) if i != j]
    for i, j in pairs:
        expected = expected - (t[i] * F.log_softmax(student[j] / 0.1, 1)).sum(1).mean() / len(pairs)
    t = targets(teacher_patches)
    for v, mask in enumerate(masks):
        ce = -(t[v] * F.log_softmax(patches[v] / 0.1, 1)).sum(1)
        image = mask.nonzero()[:, 0]
        per_image = [ce[image == i].mean() for i in range(4) if (image == i).any()]
        expected = expected + 0.7 * sum(per_image) / 4 / 2
    if name == "dinov2":
        for cls in feats:
            unit = F.normalize(cls)
            distance = torch.cdist(unit, unit) + 10 * torch.eye(4)
            expected = expected - 0.1 * (distance.min(1).values + 1e-8).log().mean()
    expected = expected + class_loss(reference, [f.detach() for f in feats], batch[2])
    torch.testing.assert_close(model.training_step(batch, 0), expected, rtol=1e-5, atol=1e-5)


def test_ibots_patches_have_a_centre_of_their_own():
    model = build("ibot")
    batch = batch_of()
    hidden = [model.hide(v, i, 0) for i, v in enumerate(batch[1])]
    with torch.no_grad():
        outputs = [
            model.momentum_head(h.of(model.momentum_backbone.forward_features(v)[:, 1:]))
            for h, v in zip(hidden, batch[1], strict=True)
        ]
    model.training_step(batch, 0)
    expected = 0.1 * torch.cat(outputs).mean(0, keepdim=True)
    torch.testing.assert_close(model.patch_loss_func.center, expected)
    assert not torch.allclose(model.dino_loss_func.center, expected)


def test_ijepa_from_its_parts():
    model = build("ijepa", data__num_large_crops=1)
    batch = tiny_batch(large=1, size=16)
    (x,) = batch[1]
    reference = copy.deepcopy(model)
    blocks = model.draw_blocks(x, 0, 0)
    vit = reference.backbone
    tokens = vit.patch_embed(x).flatten(1, 2) + vit.pos_embed
    context = torch.stack([tokens[i, blocks.context[i]] for i in range(4)])
    context = vit.norm(vit.blocks(context))
    with torch.no_grad():
        whole = reference.momentum_backbone.forward_features(x)
        whole = (whole - whole.mean(-1, keepdim=True)) / (
            whole.var(-1, keepdim=True, unbiased=False) + 1e-5
        ).sqrt()
    predictor, errors = reference.predictor, []
    for m in range(4):  # one block at a time
        seen = predictor.embed(context) + predictor.positions[blocks.context]
        asked = predictor.mask_token + predictor.positions[blocks.targets[:, m]]
        out = predictor.norm(predictor.blocks(torch.cat([seen, asked], 1)))
        predicted = predictor.out(out[:, -blocks.targets.shape[2] :])
        wanted = torch.stack([whole[i, blocks.targets[i, m]] for i in range(4)])
        difference = (predicted - wanted).abs()
        errors.append(torch.where(difference < 1, difference**2 / 2, difference - 0.5))
    expected = torch.stack(errors).mean()
    feats = context.mean(1).detach()
    expected = expected + F.cross_entropy(reference.classifier(feats), batch[2])
    torch.testing.assert_close(model.training_step(batch, 0), expected, rtol=1e-5, atol=1e-5)


def test_ijepas_context_encoder_does_not_see_the_targets():
    model = build("ijepa", data__num_large_crops=1)
    x = torch.randn(2, 3, 16, 16)
    blocks = model.draw_blocks(x, 0, 0)
    changed = x.clone()
    for image in range(2):
        for patch in blocks.targets[image].flatten().tolist():
            row, column = 4 * (patch // 4), 4 * (patch % 4)
            changed[image, :, row : row + 4, column : column + 4] = 9.0
    model._blocks = [blocks]
    with encoding(0, "online"):
        torch.testing.assert_close(model(x)["pred"], model(changed)["pred"])
    with encoding(0, "momentum"):
        one, other = model.momentum_forward(x), model.momentum_forward(changed)
    assert not torch.allclose(one["target"], other["target"])


@pytest.mark.parametrize("name", ["ibot", "dinov2", "ijepa"])
def test_masks_follow_from_seed_step_and_view(name):
    model = build(name)
    draw = model.draw_blocks if name == "ijepa" else model.hide
    x = torch.zeros(8, 3, 16, 16)
    first = draw(x, 0, 0)[0]
    torch.manual_seed(99)
    assert torch.equal(draw(x, 0, 0)[0], first)
    different = [draw(x, 1, 0)[0], draw(x, 0, 1)[0]]
    model._trainer = type("Trainer", (), {"global_step": 7})()
    different.append(draw(x, 0, 0)[0])
    assert not any(o.shape == first.shape and torch.equal(o, first) for o in different)


def test_the_last_layers_of_both_heads_are_held_still():
    model = build("dinov2", kwargs={"norm_last_layer": False})
    before = copy.deepcopy(model.state_dict())
    tiny_trainer(max_steps=2, max_epochs=1).fit(model, *loaders(batch_of(n=8)))
    for name, value in model.state_dict().items():
        if name.startswith(("head.last_layer", "patch_head.last_layer")):
            assert torch.equal(value, before[name])
        if name in ("head.mlp.0.weight", "patch_head.mlp.0.weight", "mask_token.token"):
            assert not torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("ibot", {"mask_ratio_min": 0.6}, r"mask_ratio_min <= mask_ratio_max"),
        ("dinov2", {"mask_probability": 1.5}, r"mask_probability from 0 to 1"),
        ("ijepa", {"target_scale": [0.3, 0.2]}, r"target_scale=\[0.3, 0.2\]"),
        ("ijepa", {"context_scale": [0.85, 1.5]}, "at most 1"),
        ("ijepa", {"num_targets": 0}, r"num_targets=0' is out of range: it must be at least 1"),
    ],
)
def test_mistakes_are_named(name, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        build(name, kwargs=kwargs)


def test_encoders_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match=r"global_pool: avg"):
        build("ijepa", vit={"global_pool": "token", "class_token": True})
    for name in ("ibot", "ijepa"):
        with pytest.raises(ConfigError, match=f"{name} learns from patch tokens"):
            METHODS[name](tiny_cfg(name, JEPA if name == "ijepa" else HEAD))


@pytest.mark.parametrize("name", ["dino", "ibot", "dinov2", "ijepa", "lejepa"])
def test_training_with_every_option_and_resuming_gives_the_same_run(name, tmp_path):
    options = {
        "optimizer__final_weight_decay": 0.4,
        "optimizer__layer_decay": 0.9,
        "optimizer__name": "adamw",
        "scheduler__name": "warmup_cosine",
    }
    kwargs = {} if name in ("ijepa", "lejepa") else {"local_crops": True}
    large, small = (1, 0) if name == "ijepa" else (2, 2)

    def fit(epochs, ckpt=None):
        model = build(
            name, small=small, kwargs=kwargs, data__num_large_crops=large, max_epochs=4, **options
        )
        stop = [Stop(epochs, tmp_path / f"{epochs}.ckpt")]
        trainer = tiny_trainer(max_epochs=4, callbacks=stop)
        batch = tiny_batch(n=8, large=large, small=small, size=16)
        trainer.fit(model, *loaders(batch), ckpt_path=ckpt, weights_only=True)
        return model

    straight = fit(4)
    fit(2)
    resumed = fit(5, tmp_path / "2.ckpt")
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


class Stop(pl.Callback):
    """Ends a run after some epochs and keeps a checkpoint."""

    def __init__(self, epochs, path):
        super().__init__()
        self.epochs, self.path = epochs, path

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch + 1 == self.epochs:
            trainer.should_stop = True

    def on_train_end(self, trainer, module):
        trainer.save_checkpoint(self.path)


def test_a_run_of_each_logs_its_terms():
    model = build("dinov2", small=2)
    trainer = tiny_trainer(max_epochs=1)
    trainer.fit(model, *loaders(batch_of(small=2, n=8)))
    assert {"dino_loss", "train_patch_loss", "train_koleo_loss"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize("name", ["dino", "ibot", "dinov2", "ijepa"])
def test_stochastic_depth_is_the_students_alone(name):
    model = build(name, vit={"drop_path_rate": 0.6}).train()
    depths = [
        [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]
        for encoder in (model.backbone, model.momentum_backbone)
    ]
    assert depths == [pytest.approx([0.0, 0.6]), [0.0, 0.0]]
    assert model.cfg.backbone.kwargs.drop_path_rate == 0.6
    images = batch_of(n=16)[1][0]
    targets = [model.momentum_forward(images)["feats"] for _ in range(2)]
    assert torch.equal(*targets)
    assert not torch.equal(*(model.backbone(images) for _ in range(2)))
