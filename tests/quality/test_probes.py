# SPDX-License-Identifier: MIT
"""Probes: what they see, that the run does not notice them, against main_knn's own function."""

from types import SimpleNamespace

import pytest
import timm
import torch
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from solo.errors import ConfigError, DataError
from solo.programs.knn import run_knn
from solo.quality.probes import Probes, _features, check_probes, linear_accuracies
from tests.methods.helpers import tiny_loaders, tiny_trainer
from tests.quality.test_monitor import build

pytestmark = pytest.mark.unit

DIGITS = {"dataset": "digits", "train_path": None, "val_path": None, "format": "image_folder"}
SHARED = {"batch_size": 256, "num_workers": 0, "k": 20, "encoder": "online"}


def probe(kind="knn", every=1, **changes):
    return {**DIGITS, **SHARED, "kind": kind, "every": every, **changes}


def fit(model, callbacks, epochs=2):
    torch.manual_seed(5)
    trainer = tiny_trainer(max_epochs=epochs, callbacks=callbacks, limit_val_batches=0)
    trainer.fit(model, tiny_loaders(n=8)[0])
    return trainer


def test_weights_are_bit_identical_to_a_run_without_them():
    with_it, without = build("byol"), build("byol")
    probes = Probes({"a": probe(), "b": probe("linear"), "m": probe(encoder="momentum")})
    fit(with_it, [probes])
    fit(without, [])
    for key, value in with_it.state_dict().items():
        assert torch.equal(value, without.state_dict()[key]), key
    assert with_it.training
    assert all(m.training for m in with_it.backbone.modules())


def test_knn_is_that_of_the_evaluation_program():
    model = build("simclr")
    probes = Probes({"digits": probe(), "other": probe(k=5)})
    trainer = fit(model, [probes])
    train, val = (
        _features(model.eval().backbone, part, "cpu") for part in probes._loaders["digits"]
    )
    assert (len(train[0]), len(val[0])) == (2874, 720)  # the whole set of each split
    for name, k in (("digits", 20), ("other", 5)):
        acc1, acc5 = run_knn(*train, *val, k, 0.07, "cosine")
        assert float(trainer.callback_metrics[f"probe/{name}_acc1"]) == pytest.approx(acc1)
        assert float(trainer.callback_metrics[f"probe/{name}_acc5"]) == pytest.approx(acc5)


def test_the_linear_probe_against_scikit_learn():
    X, y = load_digits(return_X_y=True)
    X, y = torch.from_numpy(X).float(), torch.from_numpy(y)
    train, val = slice(0, 1200), slice(1200, None)
    acc1, acc5 = linear_accuracies(X[train], y[train], X[val], y[val])
    mean, std = X[train].mean(0), X[train].std(0).clamp(min=1e-6)
    Z = ((X - mean) / std).numpy()
    reference = LogisticRegression(C=1 / (2 * 1e-4 * 1200), max_iter=2000).fit(Z[train], y[train])
    assert acc1 == pytest.approx(100 * reference.score(Z[val], y[val]), abs=0.7)
    assert acc5 > acc1
    assert linear_accuracies(X[train], y[train], X[val], y[val]) == (acc1, acc5)


def test_every_few_epochs_and_after_the_last():
    seen = []

    class Probed(Probes):
        def on_train_epoch_end(self, trainer, pl_module):
            super().on_train_epoch_end(trainer, pl_module)
            seen.append(len(computed))

    computed = []
    model = build("simclr")

    def count(module, inputs, output):
        if not module.training and len(inputs[0]) > 1:  # one image is tried at the start
            computed.append(1)

    model.backbone.register_forward_hook(count)
    fit(model, [Probed({"a": probe(every=2)})], epochs=3)
    assert seen[0] == 0
    assert seen[1] == 12 + 3  # 2874 and 720 images in batches of 256, once each
    assert seen[2] == 2 * 15  # the last epoch


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"dataset": "digitz"}, r"probes.x.dataset='digitz'.*'digits'"),
        ({"train_path": "a"}, r"probes.x.dataset is missing"),
        ({"dataset": "digits", "evry": 2}, r"evry"),
        ({"dataset": "digits", "kind": "svm"}, r"probes.x.kind"),
        ({"dataset": "digits", "every": 0}, r"probes.x.every"),
        ("digits", r"probes.x must be a mapping"),
    ],
)
def test_mistakes_are_named(section, message):
    with pytest.raises(ConfigError, match=message):
        check_probes(OmegaConf.create({"probes": {"x": section}}))


def test_defaults():
    cfg = OmegaConf.create({"probes": {"x": {"dataset": "digits"}}})
    check_probes(cfg)
    assert (cfg.probes.x.kind, cfg.probes.x.every, cfg.probes.x.k) == ("knn", 5, 20)


def test_a_momentum_probe_needs_a_momentum_encoder():
    with pytest.raises(ConfigError, match=r"probes.a.encoder=momentum"):
        fit(build("simclr"), [Probes({"a": probe(encoder="momentum")})])


def start(cfg, backbone, **section):
    """The probe's first training image."""
    probes = Probes({"a": probe(**section)})
    module = SimpleNamespace(cfg=OmegaConf.create(cfg), backbone=backbone)
    probes.on_fit_start(SimpleNamespace(global_rank=0, world_size=1), module)
    return next(iter(probes._loaders["a"][0]))[0][0]


def test_images_are_shown_as_the_encoder_was_trained(tmp_path):
    (tmp_path / "dark").mkdir()
    Image.new("RGB", (40, 40), (51, 51, 51)).save(tmp_path / "dark" / "0.png")
    view = {"crop_size": 24, "mean": [0.1, 0.1, 0.1], "std": [0.5, 0.5, 0.5]}
    cfg = {"data": {"dataset": "custom"}, "augmentations": [view]}
    paths = {"dataset": "custom", "train_path": str(tmp_path), "val_path": str(tmp_path)}
    image = start(cfg, torch.nn.Conv2d(3, 1, 1), **paths)
    assert image.shape == (3, 24, 24)
    assert torch.allclose(image, torch.full_like(image, 0.2), atol=1e-6)


def test_splits_of_other_classes_are_refused(tmp_path):
    for folder in ("train/dark", "train/light", "val/dark", "val/grey"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / folder / "0.png")
    paths = {"train_path": str(tmp_path / "train"), "val_path": str(tmp_path / "val")}
    with pytest.raises(DataError, match="in only one of them: grey, light"):
        start({"data": {"dataset": "custom"}}, torch.nn.Identity(), dataset="custom", **paths)


def test_an_encoder_of_another_size_is_named_before_the_first_step():
    options = {"img_size": 40, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)
    cfg = {"data": {"dataset": "custom"}, "augmentations": [{"crop_size": 32}]}
    with pytest.raises(ConfigError, match=r"probes\.a: .*Set probes\.a\.image_size"):
        start(cfg, vit)
    assert start(cfg, vit, image_size=40).shape == (3, 40, 40)
    assert all(module.training for module in vit.modules())
