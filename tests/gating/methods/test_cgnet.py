# SPDX-License-Identifier: MIT
"""CGNet's convolution against loops and closed forms (properties 32-35), losses, options."""

from statistics import NormalDist

import pytest
import torch
import torch.nn.functional as F

from solo.errors import ConfigError
from solo.utils.lars import LARS
from solo.utils.views import View, encoding
from sparse_ext.gating.config.sections import build
from sparse_ext.gating.encoder import gating_of, trace
from sparse_ext.gating.methods.spatial.conv import SmoothStep
from sparse_ext.gating.methods.spatial.paths import reduction
from tests.gating.helpers import Watch, gated_encoder, method, train
from tests.gating.methods.spatial import gated_conv, reference

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_the_convolution_block_by_block(groups):
    conv, x = gated_conv(groups=groups, outputs=16), torch.randn(3, 8, 4, 5)
    torch.nn.init.normal_(conv.tau, 0.2)
    arrays = (t.detach().double().numpy() for t in (x, conv.weight, conv.tau))
    expected, decisions = reference(*arrays, tuple(range(groups)))
    torch.testing.assert_close(conv(x), torch.tensor(expected).float(), atol=1e-5, rtol=1e-4)
    assert torch.equal(conv.paths(x)[2], torch.tensor(decisions).float())
    assert 0.2 < decisions.mean() < 0.8


def test_all_open_is_the_ordinary_convolution_and_all_closed_the_grouped_one():
    conv, x = gated_conv(groups=4), torch.randn(2, 8, 6, 6)
    torch.nn.init.constant_(conv.tau, -1e3)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, padding=1), atol=1e-5, rtol=1e-4)
    torch.nn.init.constant_(conv.tau, 1e3)
    blocks = torch.cat([conv.weight[2 * g : 2 * g + 2, 2 * g : 2 * g + 2] for g in range(4)])
    grouped = F.conv2d(x, blocks, padding=1, groups=4)
    torch.testing.assert_close(conv(x), grouped, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("alpha", [2.0, 5.0])
def test_the_gradient_of_a_decision_is_the_sigmoids_slope(alpha):
    u = torch.randn(200, dtype=torch.float64, requires_grad=True)
    for sparse in (False, True):
        u.grad = None
        m = SmoothStep.apply(u, alpha, sparse)
        assert torch.equal(m, (u > 0).double())
        m.sum().backward()
        step, at = 1e-6, u.detach()
        slope = torch.sigmoid(alpha * (at + step)) - torch.sigmoid(alpha * (at - step))
        expected = slope / (2 * step) * ((at >= 0) if sparse else 1)
        torch.testing.assert_close(u.grad, expected, atol=1e-6, rtol=1e-6)


def test_gradients_reach_weight_threshold_and_input():
    """The same function with the sigmoid put in for the step by hand."""
    conv = gated_conv(groups=2, inputs=4, outputs=4)
    x = torch.randn(3, 4, 4, 4, requires_grad=True)
    cotangent = torch.randn(3, 4, 4, 4)
    conv(x).backward(cotangent)
    found = [t.grad.clone() for t in (x, conv.weight, conv.tau)]
    x.grad = conv.weight.grad = conv.tau.grad = None
    inner = torch.zeros(4, 4, 1, 1)
    inner[:2, :2], inner[2:, 2:] = 1, 1
    base = F.conv2d(x, conv.weight * inner, padding=1)
    spread = base.var((0, 2, 3), unbiased=False, keepdim=True)
    u = (base - base.mean((0, 2, 3), keepdim=True)) / (spread + 1e-5).sqrt()
    soft = torch.sigmoid(2 * (u - conv.tau[:, None, None]))
    m = (soft > 0.5).float() + soft - soft.detach()
    y = base + F.conv2d(x, conv.weight * (1 - inner), padding=1) * m
    y.backward(cotangent)
    for one, other in zip(found, (x.grad, conv.weight.grad, conv.tau.grad), strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("target", [0.0, 0.5, 0.6])
def test_thresholds_of_standard_normal_saliences(target):
    conv = gated_conv().eval()
    torch.nn.init.constant_(conv.tau, target)
    closed = 1 - conv.decide(torch.randn(8, 8, 64, 64), "a1").mean()
    assert closed.item() == pytest.approx(NormalDist().cdf(target), abs=0.005)
    assert build({"name": "cgnet", "target": target}).threshold == target
    quantile = build({"name": "cgnet", "target": 0.7257, "target_mode": "sparsity"}).threshold
    assert quantile == pytest.approx(0.6, abs=1e-3)


def test_equation_13():
    assert reduction(4, 0.7248) == pytest.approx(2.191, abs=5e-4)
    assert reduction(8, 0.6029) == pytest.approx(2.117, abs=5e-4)
    done = trace(gated_encoder("cgnet", width=64), 32)
    gated = sum(usage.macs_dense for usage in done.layers.values()) / done.macs_dense
    assert len(done.layers) == 16
    whole = 1 / (1 - gated + gated / reduction(4, 0.7248))
    assert whole == pytest.approx(2.154, abs=3e-3)


@pytest.mark.parametrize("groups", [2, 4])
def test_measured_reduction_is_equation_13_of_the_measured_sparsity(groups):
    backbone = gated_encoder("cgnet", groups=groups).eval()
    backbone(torch.randn(3, 3, 16, 16))
    context = gating_of(backbone).context
    done, means = context.tape[None], context.collect()
    macs = {name: usage.macs_dense for name, usage in done.layers.items()}
    eta = sum(means[f"eta/{name}"] * m for name, m in macs.items()) / sum(macs.values())
    assert means["times_fewer_macs_gated"] == pytest.approx(reduction(groups, eta), rel=1e-5)
    rest = done.macs_dense - sum(macs.values())
    used = rest + sum(macs.values()) / reduction(groups, eta)
    assert means["times_fewer_macs"] == pytest.approx(done.macs_dense / used, rel=1e-5)
    sizes = {name: usage.shares["eta"][1] for name, usage in done.layers.items()}
    plain = sum(means[f"eta/{name}"] * n for name, n in sizes.items()) / sum(sizes.values())
    assert means["eta"] == pytest.approx(plain, rel=1e-5)
    assert sizes["layer1.0.conv1"] == 4 * done.layers["layer1.0.conv1"].macs_dense // (9 * 16)


def test_which_layers():
    three = {f"layer{i}.{j}.conv{k}" for i in range(1, 5) for j in (0, 1) for k in (1, 2)}
    shortcuts = {f"layer{i}.0.downsample.0" for i in (2, 3, 4)}
    assert set(gating_of(gated_encoder("cgnet")).layers) == three
    wide = gating_of(gated_encoder("cgnet", gate_shortcut=True)).layers
    assert set(wide) == three | shortcuts
    deep = gating_of(gated_encoder("cgnet", backbone="resnet50")).layers
    assert {name.rpartition(".")[2] for name in deep} == {"conv2"}
    assert len(deep) == 16
    deeper = gating_of(gated_encoder("cgnet", backbone="resnet50", gate_1x1=True)).layers
    assert len(deeper) == 48


def test_shuffled_inputs():
    plain, shuffled = gated_conv(groups=2), gated_conv(groups=2, shuffle=True)
    shuffled.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(shuffled(x), plain(x[:, [0, 4, 1, 5, 2, 6, 3, 7]]))


def test_instance_norm_does_not_know_the_batch():
    conv, x = gated_conv(norm="instance"), torch.randn(4, 8, 5, 5)
    torch.testing.assert_close(conv(x)[:1], conv(x[:1]))
    assert not any("norms" in key for key in conv.state_dict())


def masks_of(unified):
    backbone = gated_encoder("cgnet", unified=unified, groups=2).train()
    for index in (0, 1):
        with encoding(index):
            backbone(torch.randn(2, 3, 8, 8))
    tape = gating_of(backbone).context.tape
    return [tape[View(i, "online")].layers["layer1.0.conv1"].masks for i in (0, 1)], backbone


def test_unified_decisions_are_those_of_the_first_view():
    (first, second), _ = masks_of(unified=False)
    assert not torch.equal(first, second)
    (first, second), backbone = masks_of(unified=True)
    assert torch.equal(first, second)
    assert first.requires_grad
    with encoding(0):
        backbone(torch.randn(2, 3, 8, 8))
    with pytest.raises(ConfigError, match=r"gating\.unified=true needs views of one size"):  # noqa: SIM117
        with encoding(1):
            backbone(torch.randn(2, 3, 16, 16))
    assert torch.isfinite(backbone.eval()(torch.randn(1, 3, 8, 8))).all()


def test_the_regulariser():
    model = method("simclr", {"name": "cgnet", "target": 0.6, "lamb": 0.1})
    gating = gating_of(model.backbone)
    for layer in gating.layers.values():
        torch.nn.init.normal_(layer.tau)
    taus = [layer.tau.detach() for layer in gating.layers.values()]
    expected = 0.1 * sum(((tau - 0.6) ** 2).sum() for tau in taus)
    loss = gating.method.losses(gating, model, [])["threshold_loss"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    torch.testing.assert_close(gating.layers["layer1.0.conv1"].tau.grad, 0.2 * (taus[0] - 0.6))
    rooted = gating_of(gated_encoder("cgnet", reg="l2", lamb=1.0, target=0.0))
    for layer in rooted.layers.values():
        torch.nn.init.constant_(layer.tau, 2.0)
    channels = [layer.tau.numel() for layer in rooted.layers.values()]
    loss = rooted.method.losses(rooted, None, [])["threshold_loss"]
    assert loss.item() == pytest.approx(sum(2 * n**0.5 for n in channels), rel=1e-5)


def test_thresholds_have_neither_decay_nor_adaptation():
    model = method("simclr", "cgnet", optimizer__name="lars", optimizer__weight_decay=0.5)
    groups = {group["name"]: group for group in model.learnable_params}
    own = groups["backbone_gates"]
    assert len(own["params"]) == 16
    assert own["weight_decay"] == 0
    (group,) = [{**own, "params": own["params"][:1]}]
    tau = own["params"][0]
    torch.nn.init.ones_(tau)
    tau.grad = torch.full_like(tau, 3.0)
    LARS([group], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(tau, torch.ones_like(tau) - 0.3)


def test_simsiam_trains():
    watch = Watch()
    model, run = train("simsiam", {"name": "cgnet", "groups": 2}, callbacks=[watch])
    assert watch.branches == [["a1a1"]] * 2
    metrics = run.callback_metrics
    assert 0.3 < metrics["gating/eta"] < 0.7
    assert {"gating/eta/layer3.1.conv2", "gating/mask_similarity/layer3.1.conv2"} <= set(metrics)
    assert 0 < metrics["gating/mask_similarity"] < 1
    assert "gating/threshold_loss_epoch" in metrics
    assert model.backbone.layer1[0].conv1.tau.abs().max() > 0


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"groups": 1}, "at least 2"),
        ({"target_mode": "share"}, r"gating\.target_mode='share'"),
        ({"target": 1.2, "target_mode": "sparsity"}, "between 0 and 1"),
        ({"reg": "l1"}, r"gating\.reg='l1'.*l2"),
        ({"norm": "layer"}, r"gating\.norm='layer'.*batch"),
        ({"alpha": 0}, "must be positive"),
        ({"eval": "a2"}, r"gating\.eval.*a1"),
        ({"overlap": 0}, r"Unknown key gating\.overlap"),
    ],
)
def test_mistakes(section, message):
    with pytest.raises(ConfigError, match=message):
        build({"name": "cgnet", **section})


def test_shapes_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"groups=8 does not divide .* layer1\.0\.conv1 \(4 in"):
        gated_encoder("cgnet", groups=8)
    with pytest.raises(ConfigError, match=r"layer1\.0\.conv1 has 2 \(4 in 2 groups\)"):
        gated_encoder("cgnet", groups=2, structured=True)
    views = {"augmentations": [{"crop_size": 16}, {"crop_size": 8}]}
    with pytest.raises(ConfigError, match=r"these have 8 and 16 pixels"):
        method("simclr", {"name": "cgnet", "unified": True}, **views)
    method("simclr", "cgnet", **views)
    size = {"augmentations": [{"crop_size": 4, "num_crops": 2}]}
    with pytest.raises(ConfigError, match=r"gating\.norm=instance.*one place per channel"):
        method("simclr", {"name": "cgnet", "norm": "instance"}, **size)
