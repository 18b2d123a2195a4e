# SPDX-License-Identifier: MIT
"""`+sparse=...` on solo's own methods: training, files, evaluation of both encoders."""

import pytest
import torch

from solo import extensions
from solo.backbones import build_encoder
from solo.checkpoints.files import read_checkpoint
from solo.checkpoints.loading import load_encoder
from solo.errors import CheckpointError
from solo.methods import METHODS
from sparse_ext import enable
from sparse_ext.extension import SparseExtension
from sparse_ext.training.momentum_encoder import MaskedEMA
from tests.methods.helpers import tiny_cfg, tiny_loaders, tiny_trainer

pytestmark = pytest.mark.unit

KWARGS = {
    "byol": {"proj_hidden_dim": 16, "proj_output_dim": 8, "pred_hidden_dim": 16},
    "simclr": {"proj_hidden_dim": 16, "proj_output_dim": 8, "temperature": 0.2},
    "mocov2plus": {
        "proj_hidden_dim": 16,
        "proj_output_dim": 8,
        "temperature": 0.2,
        "queue_size": 16,
    },
}
SPARSE = {"name": "synccp", "debug": True, "update_period": 1}
N = 43_584  # convolutions of a ResNet-18 of width 4 without its stem: 11,157,504 / 256


def method(name, sparse, **changes):
    cfg = tiny_cfg(name, dict(KWARGS[name]), seed=5, **changes)
    if sparse:
        cfg.sparse = sparse
        enable(cfg)
    return METHODS[name](METHODS[name].add_and_assert_specific_cfg(cfg))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A sparse and a dense BYOL run of two epochs, as files."""
    folder, paths = tmp_path_factory.mktemp("runs"), {}
    for name, sparse in (("sparse", SPARSE), ("dense", None)):
        run = tiny_trainer()
        run.fit(method("byol", sparse), *tiny_loaders())
        run.save_checkpoint(folder / f"{name}.ckpt")
        paths[name] = folder / f"{name}.ckpt"
    return paths


@pytest.mark.parametrize("name", KWARGS)
def test_a_run_reaches_its_sparsity(name):
    model = method(name, "synccp")
    run = tiny_trainer(max_epochs=3)
    run.fit(model, *tiny_loaders())
    describe = SparseExtension().describe
    figures = describe(model.backbone)
    assert (figures["prunable_weights"], figures["kept_weights"]) == (N, round(0.2 * N))
    assert run.callback_metrics["sparse/online_sparsity"].item() == pytest.approx(0.8, abs=1e-4)
    if name == "simclr":
        assert "sparse/momentum_sparsity" not in run.callback_metrics
    else:
        assert isinstance(model.momentum_updater, MaskedEMA)
        assert describe(model.momentum_backbone)["kept_weights"] == round(0.5 * N)
        assert run.callback_metrics["sparse/gap"].item() == pytest.approx(0.3, abs=1e-4)


def test_without_the_section_nothing_changes():
    model = method("byol", None)
    assert model.configure_callbacks() == []
    assert not any(key.endswith("mask") for key in model.state_dict())
    assert SparseExtension().describe(model.backbone) == {}


def test_weights_are_born_the_same_dense_or_sparse():
    """Patching draws no random number and touches no weight."""
    states = []
    for sparse in (None, SPARSE):
        torch.manual_seed(3)
        states.append(method("byol", sparse).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    extra = set(states[1]) - set(states[0])
    assert {key.rpartition(".")[2] for key in extra} == {"mask"}
    assert len(extra) == 2 * 19


def test_one_callback_per_module():
    model = method("byol", SPARSE)
    assert model.configure_callbacks()[0] is model.configure_callbacks()[0]


@pytest.mark.parametrize(("encoder", "kept"), [("online", 0.2), ("momentum", 0.5)])
def test_evaluation_rebuilds_the_patched_encoder(files, encoder, kept):
    report = load_encoder(build_encoder(tiny_cfg("byol")), files["sparse"], encoder)
    assert report.figures["kept_weights"] == round(kept * N)
    assert report.figures["sparsity"] == pytest.approx(1 - kept, abs=1e-4)
    state = read_checkpoint(files["sparse"])["state_dict"]
    prefix = "backbone." if encoder == "online" else "momentum_backbone."
    own = report.backbone.state_dict()
    assert all(torch.equal(own[key], state[prefix + key]) for key in own)
    assert not any(key.endswith(("shadow", "score")) for key in own)
    x = torch.randn(2, 3, 8, 8)
    assert torch.isfinite(report.backbone.eval()(x)).all()


def test_exactly_the_masked_layers_are_swapped(files):
    checkpoint = torch.load(files["sparse"], weights_only=True)
    for name in ("mask_packed", "shadow_packed", "score_packed"):
        del checkpoint["state_dict"][f"backbone.layer4.1.conv2.{name}"]
    report = load_encoder(build_encoder(tiny_cfg("byol")), checkpoint)
    assert type(report.backbone.layer4[1].conv2) is torch.nn.Conv2d
    assert report.figures["prunable_weights"] == N - 32 * 32 * 9


def test_masks_that_do_not_fit_the_encoder(files):
    other = build_encoder(tiny_cfg("byol", backbone={"name": "resnet50", "kwargs": {"width": 4}}))
    with pytest.raises(CheckpointError):
        load_encoder(other, files["sparse"])
    with pytest.raises(CheckpointError, match="mask"):
        load_encoder(method("byol", SPARSE).backbone, files["dense"])


def test_masks_without_the_extension_are_an_error(files, monkeypatch):
    monkeypatch.setattr(extensions, "_EXTENSIONS", {})
    monkeypatch.setattr(extensions, "_discovered", True)
    with pytest.raises(CheckpointError, match="mask"):
        load_encoder(build_encoder(tiny_cfg("byol")), files["sparse"])


def test_resuming_on_the_wrong_side(files):
    with pytest.raises(CheckpointError, match=r"this run is dense.*\+sparse"):
        tiny_trainer(max_epochs=3).fit(
            method("byol", None), *tiny_loaders(), ckpt_path=files["sparse"]
        )
    with pytest.raises(CheckpointError, match="leave out the sparse section"):
        tiny_trainer(max_epochs=3).fit(
            method("byol", SPARSE), *tiny_loaders(), ckpt_path=files["dense"]
        )


def test_training_state_is_what_lies_beside_a_mask():
    state = dict.fromkeys(["a.weight", "a.mask", "a.score", "a.shadow", "b.score", "shadow"])
    assert SparseExtension().training_state(state) == {"a.score", "a.shadow"}
