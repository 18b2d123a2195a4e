# SPDX-License-Identifier: MIT
"""CDG: base paths, branches, statistics (properties 31, 36, 37), runs, resume, programs."""

import sys

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from solo.args.knn import parse_args_knn
from solo.errors import ConfigError
from solo.programs.knn import knn
from solo.programs.linear import linear
from solo.programs.pretrain import pretrain
from solo.utils.views import encoding
from sparse_ext.extension import register
from sparse_ext.gating.config.sections import build
from sparse_ext.gating.encoder import choose, gating_of, patch
from sparse_ext.gating.methods.spatial.cgnet import mask_similarity
from sparse_ext.gating.methods.spatial.paths import base_input, base_weight, diagonal, second_path
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.living_weights import ALWAYS, make_functional
from sparse_ext.masks.masked_layers import MaskedConv2d
from sparse_ext.report import write_report
from sparse_ext.report.gating_panels import Chosen
from tests.gating.helpers import (
    Watch,
    assert_comes_back,
    assert_resumes,
    gated_encoder,
    method,
    plain_encoder,
    train,
)
from tests.gating.methods.spatial import block_mask, gated_conv, reference
from tests.methods.helpers import tiny_loaders, tiny_trainer
from tests.programs.tiny import LINEAR, PRETRAIN, config, run_of

pytestmark = pytest.mark.unit


def base_blocks(pattern, outputs, inputs):
    """Which weights the base path sees, from what it computes: its Jacobian."""
    weight = torch.ones(outputs, inputs, 1, 1, requires_grad=True)
    x = torch.ones(1, inputs, 1, 1)
    picked = base_weight(weight, pattern)
    F.conv2d(base_input(x, pattern), picked, groups=len(pattern)).sum().backward()
    return weight.grad[:, :, 0, 0].bool()


def test_base_paths_per_overlap():
    first = base_blocks(diagonal(4), 8, 12)
    shared = {}
    for overlap in (0, 50, 75, 100):
        second = base_blocks(second_path(4, overlap), 8, 12)
        assert torch.equal(second, torch.tensor(block_mask(second_path(4, overlap), 8, 12)))
        shared[overlap] = (first & second).sum().item() / first.sum().item()
        assert (second.sum(1) == 3).all()  # each output has 1/G of the inputs
    assert shared == {0: 0, 50: 0.5, 75: 0.75, 100: 1}
    assert second_path(4, 50) == (0, 1, 0, 1)
    assert second_path(4, 75) == (0, 1, 2, 0)
    assert base_blocks(second_path(4, 50), 4, 4).sum(0).tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_disjoint_paths_take_every_group_once(groups):
    one, two = diagonal(groups), second_path(groups, 0)
    assert sorted(one) == sorted(two) == list(range(groups))
    assert all(a != b for a, b in zip(one, two, strict=True))
    expected = torch.zeros(2 * groups, groups, dtype=torch.bool)
    for out in range(2 * groups):
        expected[out, groups - 1 - out // 2] = True
    assert torch.equal(base_blocks(two, 2 * groups, groups), expected)


@pytest.mark.parametrize(("groups", "overlap"), [(2, 0), (4, 0), (4, 50), (4, 75), (4, 100)])
def test_the_second_branch_block_by_block(groups, overlap):
    conv = gated_conv("cdg", branch="a2", groups=groups, overlap=overlap)
    torch.nn.init.normal_(conv.tau, 0.2)
    x = torch.randn(2, 8, 4, 4)
    arrays = (t.detach().double().numpy() for t in (x, conv.weight, conv.tau))
    expected, _ = reference(*arrays, second_path(groups, overlap))
    torch.testing.assert_close(conv(x), torch.tensor(expected).float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("branch", ["a1", "a2"])
def test_structured_decisions_are_shared_by_eight_channels(branch):
    conv = gated_conv("cdg", 4, 32, branch, groups=2, structured=True)
    torch.nn.init.normal_(conv.tau, 0.3)
    x = torch.randn(2, 4, 4, 4)
    arrays = (t.detach().double().numpy() for t in (x, conv.weight, conv.tau))
    pattern = (0, 1) if branch == "a1" else (1, 0)
    expected, decisions = reference(*arrays, pattern, tile=8)
    torch.testing.assert_close(conv(x), torch.tensor(expected).float(), atol=1e-5, rtol=1e-4)
    m = conv.paths(x)[2]
    assert torch.equal(m, torch.tensor(decisions).float())
    tiles = m.unflatten(1, (-1, 8))
    assert tiles[:, :, :1].expand_as(tiles).equal(tiles)
    assert tiles[:, :, 0].numel() == m.numel() // 8


def statistics(backbone, branch):
    return {k: v.clone() for k, v in backbone.state_dict().items() if f"norms.{branch}." in k}


def test_statistics_of_a_branch_see_that_branch_alone():
    backbone, x = gated_encoder("cdg", groups=2).train(), torch.randn(4, 3, 8, 8)
    before = {branch: statistics(backbone, branch) for branch in ("a1", "a2")}
    assert len(before["a1"]) == 3 * 16
    with encoding(1):
        backbone(x)
    after = {branch: statistics(backbone, branch) for branch in ("a1", "a2")}
    assert all(torch.equal(before["a1"][key], after["a1"][key]) for key in before["a1"])
    assert not any(torch.equal(before["a2"][key], after["a2"][key]) for key in before["a2"])


def test_evaluation_takes_a1():
    backbone, x = gated_encoder("cdg", groups=2).eval(), torch.randn(2, 3, 8, 8)
    before = backbone(x)
    for module in backbone.modules():
        if hasattr(module, "norms"):
            torch.nn.init.constant_(module.norms["a2"].running_mean, 3.0)
    assert torch.equal(backbone(x), before)
    with encoding(0):
        assert torch.equal(backbone(x), before)
    assert not torch.equal(choose(backbone, "a2")(x), before)
    with pytest.raises(ConfigError, match="no such branch"):
        choose(backbone, "a3")


def test_mask_similarity():
    a = torch.tensor([[1.0, 1, 0], [1, 0, 0], [0, 0, 0]]).T.reshape(1, 3, 1, 3)
    b = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 1]]).T.reshape(1, 3, 1, 3)
    assert mask_similarity(a, b).item() == pytest.approx((0.5**0.5 + 0 + 0) / 3)
    assert mask_similarity(a.bool(), a.bool()).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["simclr", "simsiam"])
def test_single_encoders_split_by_view(name):
    watch = Watch()
    _, run = train(name, {"name": "cdg", "groups": 2}, callbacks=[watch], loaders=tiny_loaders(2))
    assert watch.branches == [["a1a2"]] * 2
    metrics = run.callback_metrics
    for branch in ("a1", "a2"):
        assert 0.3 < metrics[f"gating/{branch}/eta"] < 0.7
        assert 1 < metrics[f"gating/{branch}/times_fewer_macs_gated"] < 2
        assert f"gating/{branch}/eta/layer4.1.conv2" in metrics
    assert 0 < metrics["gating/mask_similarity"] < 1
    assert "gating/val_eta" in metrics


def test_moco_splits_by_encoder_and_averages_weights_and_thresholds():
    watch = Watch()
    section = {"name": "cdg", "groups": 2, "lamb": 0.1}
    model = method("mocov2plus", section, momentum__base_tau=0.5, momentum__final_tau=0.5)
    keys = ("layer1.0.conv1.weight", "layer1.0.conv1.tau")
    old = {key: model.momentum_backbone.state_dict()[key].clone() for key in keys}
    run = tiny_trainer(max_epochs=1, limit_train_batches=1, callbacks=[watch])
    run.fit(model, tiny_loaders(steps=2)[0])
    assert watch.branches == [["a1a1", "a2a2"]]
    online, momentum = model.backbone.state_dict(), model.momentum_backbone.state_dict()
    for key in keys:
        assert not torch.equal(online[key], old[key])
        torch.testing.assert_close(momentum[key], 0.5 * old[key] + 0.5 * online[key])
    key = "layer1.0.conv1.norms.{}.num_batches_tracked"
    assert [online[key.format(b)].item() for b in ("a1", "a2")] == [2, 0]
    assert [momentum[key.format(b)].item() for b in ("a1", "a2")] == [0, 2]
    assert {f"gating/{b}/eta" for b in ("a1", "a2")} <= set(run.callback_metrics)
    assert "gating/mask_similarity" in run.callback_metrics


def test_how_views_are_split():
    def split(name, **section):
        section = {"name": "cdg", "groups": 2, **section}
        return gating_of(method(name, section).backbone).config.split

    assert split("simclr") == "view"
    assert split("mocov2plus") == "encoder"
    assert split("mocov2plus", split="view") == "view"


def test_resume(tmp_path):
    assert_resumes("mocov2plus", {"name": "cdg", "groups": 2}, tmp_path / "a.ckpt")


def test_weights_alone_bring_it_back():
    assert_comes_back(gated_encoder("cdg", overlap=75, target=0.3))


def test_bf16_decides_in_float32():
    conv = gated_conv("cdg", groups=2)
    with torch.autocast("cpu", torch.bfloat16):
        base, _, m = conv.paths(torch.randn(2, 8, 4, 4))
        assert base.dtype is torch.bfloat16
        assert m.dtype is torch.float32
        assert conv(torch.randn(2, 8, 4, 4)).dtype is torch.bfloat16
    section = {"name": "cdg", "groups": 2}
    model, run = train("simclr", section, precision="bf16-mixed")
    assert torch.isfinite(run.callback_metrics["gating/threshold_loss"])
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_channels_last_changes_nothing():
    conv = gated_conv("cdg", 8, 32, groups=2, structured=True)
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(conv(x.to(memory_format=torch.channels_last)), conv(x))


def test_masks_and_gates_together():
    sparse = {"name": "gmp", "final": 0.5, "update_period": 1, "debug": True}
    model = method("simclr", {"name": "cdg", "groups": 2}, sparse=sparse)
    run = tiny_trainer(max_epochs=2)
    run.fit(model, tiny_loaders(steps=2)[0])
    conv = model.backbone.layer2[1].conv1
    assert 0 < conv.mask.float().mean() < 1
    assert conv.weight[~conv.mask].abs().max() == 0
    assert run.callback_metrics["sparse/online_sparsity"].item() == pytest.approx(0.5, abs=1e-3)
    assert 0 < run.callback_metrics["gating/a1/eta"] < 1


@pytest.mark.parametrize("gating", ["cdg", "fbs", "dgc"])
def test_masks_that_prune_in_the_forward_pass_do_it_in_gated_layers(gating):
    """SD masks the first view's pass alone; weights stay alive."""
    section = {"name": gating, **({"groups": 2} if gating == "cdg" else {})}
    model = method("simclr", section, sparse={"name": "sd", "final": 0.5})
    tiny_trainer(max_epochs=2).fit(model, tiny_loaders(steps=2)[0])
    conv = model.backbone.layer2[1].conv1.eval()
    assert 0 < conv.mask.float().mean() < 1
    x = torch.randn(2, 8, 4, 4)
    with encoding(0), torch.no_grad():
        before = conv(x)
        conv.weight[~conv.mask] += 3.0
        assert torch.equal(conv(x), before)
    with encoding(1), torch.no_grad():
        other = conv(x)
        conv.weight[~conv.mask] += 3.0
        assert not torch.allclose(conv(x), other)


def test_a_mask_in_the_forward_pass_of_a_layer_that_has_none():
    class Own(MaskedConv2d):
        pass

    backbone = torch.nn.Sequential(Own(3, 4, 3))
    backbone[0].register_buffer("mask", torch.ones(4, 3, 3, 3, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"the Own '0' cannot do.*sparse\.exclude"):
        make_functional(Encoder(backbone), ALWAYS)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"groups": 3}, r"gating\.groups=3 is odd.*allow_overlap=true"),
        ({"groups": 8, "overlap": 50}, r"overlap=50 is defined for gating\.groups=4 only"),
        ({"overlap": 25}, "must be 0, 50, 75 or 100"),
        ({"split": "views"}, r"gating\.split='views'.*view"),
        ({"eval": "b1"}, r"gating\.eval.*a1"),
    ],
)
def test_mistakes(section, message):
    with pytest.raises(ConfigError, match=message):
        build({"name": "cdg", **section})
    assert build({"name": "cdg", "groups": 3, "allow_overlap": True}).groups == 3


def test_backbones_without_residual_blocks():
    with pytest.raises(ConfigError, match=r"gating=cdg.*Sequential has none.*resnet18"):
        patch(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), build("cdg"))
    backbone = plain_encoder()
    backbone.layer3[0].conv1.groups = 2
    with pytest.raises(ConfigError, match=r"without groups: see layer3\.0"):
        patch(backbone, build("cdg"))


def test_a_checkpoint_through_linear_and_knn(tmp_path, monkeypatch, capsys):
    register()
    monkeypatch.chdir(tmp_path)
    width = {"backbone__kwargs": {"width": 4}}
    kwargs = {"proj_hidden_dim": 16, "proj_output_dim": 8, "temperature": 0.2}
    gating = {"name": "cdg", "groups": 2}
    pretrain(config(PRETRAIN, method="simclr", method_kwargs=kwargs, gating=gating, **width))
    folder, checkpoint = run_of(tmp_path, "simclr", "0")
    source = torch.load(checkpoint)["state_dict"]
    example = tmp_path / "a.png"
    Image.new("RGB", (32, 32), (200, 90, 20)).save(example)
    evaluation = config(LINEAR, pretrained_feature_extractor=str(checkpoint), **width)
    metrics = linear(evaluation).callback_metrics
    assert 0 < metrics["encoder/flops_reduction"] < 0.5
    assert 0 < metrics["encoder/eta"] < 1
    after = torch.load(run_of(tmp_path, "linear", "0")[1])["state_dict"]
    same = {k: v for k, v in after.items() if k.startswith("backbone.")}
    assert all(torch.equal(v, source[k]) for k, v in same.items())
    argv = ["main_knn.py", "--dataset", "digits", "--pretrained_checkpoint_dir", str(folder)]
    monkeypatch.setattr(sys, "argv", [*argv, "--num_workers", "0", "--k", "1"])
    (results,) = knn(parse_args_knn())
    assert results["eta"] == pytest.approx(metrics["encoder/eta"].item(), abs=0.05)
    assert results["macs_dense"] == metrics["encoder/macs_dense"]
    page = write_report(folder, chosen=Chosen((example,))).read_text()
    assert "Feature maps of base and conditional path" in page
    assert "Conditional sparsity per layer, validation" in page
    tuned = config(LINEAR, pretrained_feature_extractor=str(checkpoint), finetune=True, **width)
    assert "gating/threshold_loss_epoch" in linear(tuned).callback_metrics
    tau = "backbone.layer1.0.conv1.tau"
    assert not torch.equal(torch.load(run_of(tmp_path, "linear", "1")[1])["state_dict"][tau],
                           source[tau])  # fmt: skip
