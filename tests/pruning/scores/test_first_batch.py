# SPDX-License-Identifier: MIT
"""SNIP and GraSP on the run's own loss (properties 29, 30), and the copy that they look at."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from solo.errors import ConfigError
from sparse_ext import sparsify
from sparse_ext.config.sections import build
from sparse_ext.masks.masking import patch
from sparse_ext.pruning.scores import scorers
from sparse_ext.pruning.scores.first_batch import Probe
from tests.pruning.toys import data, toy, trainer

pytestmark = pytest.mark.unit

N = 8 * 3 * 9 + 8 * 8 * 9 + 16 * 8 * 9 + 8 * 16


class Scored(pl.LightningModule):
    """A module with any backbone and loss."""

    def __init__(self, backbone, loss):
        super().__init__()
        self.backbone = patch(backbone, build({"name": "snip", "stem_dense": False}))
        self.classifier = nn.Linear(3, 3)
        self.loss = loss
        self.register_buffer("count", torch.zeros(()))

    def training_step(self, batch, index):
        self.count += 1
        loss = self.loss(self, batch)
        self.log("train_loss", loss)
        return loss


def test_snip_on_a_linear_net_is_closed_form():
    """Loss 0.5 |X w - y|^2: g = X' (X w - y), score |g w|."""
    net = nn.Sequential(nn.Linear(5, 1, bias=False)).double()
    x, y = torch.randn(7, 5).double(), torch.randn(7, 1).double()
    module = Scored(net, lambda m, b: 0.5 * (m.backbone(b[0]) - b[1]).square().sum())
    probe = Probe(module, None, [x, y])
    w = net[0].weight.detach()
    expected = (x.T @ (x @ w.T - y)).T
    torch.testing.assert_close(probe.gradients()["0"], expected)
    assert torch.equal(net[0].weight, w)
    assert net[0].weight.grad is None
    assert module.count == 0


def test_snip_scores_are_conserved_through_a_relu_net():
    """Bias-free ReLU layers: the sum of g W is the same for every layer."""
    net = nn.Sequential(
        nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 5, bias=False), nn.ReLU(),
        nn.Linear(5, 3, bias=False),
    ).double()  # fmt: skip
    module = Scored(net, lambda m, b: nn.functional.cross_entropy(m.backbone(b[0]), b[1]))
    probe = Probe(module, None, [torch.randn(8, 6).double(), torch.arange(8) % 3])
    grads = probe.gradients()
    sums = [float((grads[n] * w).sum()) for n, w in probe.weights.items()]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-5)
    assert abs(sums[0]) > 1e-6


def test_grasp_on_a_quadratic_loss():
    """Property 30: 0.5 w'Aw in both halves: score -w * (A A w), ours its negative."""
    net = nn.Sequential(nn.Linear(4, 1, bias=False)).double()
    root = torch.randn(4, 4).double()
    a = root @ root.T
    module = Scored(net, lambda m, b: 0.5 * (m.backbone(a) * m.backbone[0].weight.T).sum())
    probe = Probe(module, None, [torch.zeros(2)])
    w = net[0].weight.detach().flatten()
    expected = w * (a @ a @ w)
    found = probe.second_order(scorers.hessian_gradient)["0"]
    torch.testing.assert_close(scorers.grasp(probe.weights["0"], found).flatten(), expected)


def test_grasp_equals_finite_differences_of_the_gradient():
    """H g of the mean loss of two halves: (g(w + e g) - g(w - e g)) / 2e."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    def loss(module, batch):
        return nn.functional.cross_entropy(module.backbone(batch[0]), batch[1])

    x, y = torch.randn(8, 6).double(), torch.arange(8) % 3
    module = Scored(net, loss)
    probe = Probe(module, None, [x, y])
    found = probe.second_order(scorers.hessian_gradient)

    def gradient(at):
        clone = copy.deepcopy(net)
        weights = [clone[0].weight, clone[2].weight]
        for weight, value in zip(weights, at, strict=True):
            weight.data.copy_(value)
        halves = [
            nn.functional.cross_entropy(clone(x[p]), y[p]) for p in (slice(0, 4), slice(4, 8))
        ]
        return torch.autograd.grad(sum(halves) / 2, weights)

    start = [net[0].weight.detach(), net[2].weight.detach()]
    g = gradient(start)
    up = gradient([w + 1e-5 * d for w, d in zip(start, g, strict=True)])
    down = gradient([w - 1e-5 * d for w, d in zip(start, g, strict=True)])
    for name, a, b in zip(("0", "2"), up, down, strict=True):
        torch.testing.assert_close(found[name], (a - b) / 2e-5, rtol=1e-4, atol=1e-9)


def test_temperature_divides_the_logits():
    net = nn.Sequential(nn.Linear(6, 3))

    def loss(module, batch):
        return nn.functional.cross_entropy(module.classifier(module.backbone(batch[0])), batch[1])

    module = Scored(net, loss)
    batch = [torch.randn(4, 6), torch.arange(4) % 3]
    probe = Probe(module, None, batch)
    probe.scale_logits("classifier", 200.0)
    expected = torch.autograd.grad(
        nn.functional.cross_entropy(module.classifier(net(batch[0])) / 200, batch[1]),
        net[0].weight,
    )[0]
    torch.testing.assert_close(probe.gradients()["0"], expected)
    with pytest.raises(ConfigError, match=r"head 'heid' that returns logits: set sparse\.head"):
        probe.scale_logits("heid", 200.0)


def test_looking_leaves_no_trace():
    """Weights, statistics, gradients, random state; logging is switched off on the copy only."""
    model = toy()
    patch(model.backbone, build("snip"))
    state = copy.deepcopy(model.state_dict())
    batch = next(iter(data()))
    before = torch.get_rng_state()
    probe = Probe(model, None, batch)
    first = probe.gradients()
    probe.second_order(scorers.hessian_gradient)
    again = probe.gradients()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert model.log.__func__ is pl.LightningModule.log


@pytest.mark.parametrize("name", ["snip", "grasp"])
@pytest.mark.parametrize("momentum", [True, False])
def test_the_kept_weights_are_those_of_largest_score(name, momentum):
    """In a real run, against scores computed here from the plain module and batch."""
    model = toy(momentum=momentum)
    plain = copy.deepcopy(model)
    batch = next(iter(data()))
    weights = [plain.backbone[i].weight for i in (0, 3, 5, 9)]
    if name == "snip":
        grads = torch.autograd.grad(plain.training_step(batch, 0), weights)
        scores = [(g * w).abs() for g, w in zip(grads, weights, strict=True)]
    else:
        halves = [[t[:2] for t in batch], [t[2:] for t in batch]]
        mean = sum(plain.training_step(half, 0) for half in halves) / 2
        trained = [*weights, plain.predictor.weight]  # the flow of all gradients, heads included
        grads = torch.autograd.grad(mean, trained, create_graph=True)
        inner = sum((g.detach() * g).sum() for g in grads)
        products = torch.autograd.grad(inner, weights)
        scores = [w * p for w, p in zip(weights, products, strict=True)]
    flat = torch.cat([s.detach().flatten() for s in scores])
    expected = torch.zeros(N, dtype=torch.bool)
    expected[flat.argsort(descending=True)[: round(0.3 * N)]] = True
    callback = sparsify(model, {"name": name, "final": 0.7, "debug": True})
    trainer(epochs=1).fit(model, data())
    masks = callback.pruner.online.masks
    found = torch.cat([m.flatten() for m in masks.values()])
    assert int(found.sum()) == round(0.3 * N)
    assert (found ^ expected).sum() <= 2  # the last bit of a sum may differ
    if momentum:
        assert callback.pruner.momentum.masks.checksum() == masks.checksum()


def test_scoring_changes_no_later_step():
    """The masks given by hand, a run is the same as one that had to look."""
    model = toy()
    callback = sparsify(model, {"name": "snip"})
    trainer(epochs=1).fit(model, data())
    other = toy()
    second = sparsify(other, {"name": "snip"})
    for name, mask in callback.pruner.online.masks.items():
        for net in (other.backbone, other.momentum_backbone):
            net[int(name)].mask.copy_(mask)
            net[int(name)].apply_mask()
    trainer(epochs=1).fit(other, data())
    assert second.pruner.online.masks.checksum() == callback.pruner.online.masks.checksum()
    for key, value in other.state_dict().items():
        if not key.endswith("shadow"):
            assert key.startswith("momentum") or torch.equal(value, model.state_dict()[key]), key


@pytest.mark.parametrize("granularity", ["2:4", "block8", "filter"])
@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_groups(name, granularity):
    final = 0.5
    model = toy(momentum=False)
    callback = sparsify(model, {"name": name, "granularity": granularity, "final": final})
    trainer(epochs=1).fit(model, data())
    units = callback.pruner.units
    assert units.count(callback.pruner.online.masks) == units.budget(final)
    assert units.fit(callback.pruner.online.masks)


def test_modules_without_a_loss():
    class NoLoss(type(toy())):
        def training_step(self, batch, index):
            return None

    torch.manual_seed(0)
    model = NoLoss()
    sparsify(model, "snip")
    with pytest.raises(ConfigError, match="returned no loss for its first batch"):
        trainer().fit(model, data())
    model = toy()
    sparsify(model, "grasp")
    with pytest.raises(ConfigError, match="splits a batch in two"):
        trainer().fit(model, data(size=1))
