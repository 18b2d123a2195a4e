# SPDX-License-Identifier: MIT
"""Which branch a pass takes, and what is kept of it."""

import copy
import pickle

import pytest
import torch

from solo.errors import CheckpointError, ConfigError
from solo.utils.views import View, encoding
from sparse_ext.gating.encoder import CONFIG_KEY, choose, gating_of, rebuild
from tests.gating.helpers import gated_encoder, plain_encoder

pytestmark = pytest.mark.unit


def branches_of(backbone):
    context = gating_of(backbone).context
    return {view: done.branch for view, done in context.tape.items()}


def test_the_announced_view_decides_and_never_the_mode():
    backbone, x = gated_encoder(), torch.randn(2, 3, 8, 8)
    for mode in (True, False):
        backbone.train(mode)
        gating_of(backbone).context.tape.clear()
        for encoder in ("online", "momentum"):
            for index in range(4):
                with encoding(index, encoder):
                    backbone(x)
        backbone(x)
        found = branches_of(backbone)
        assert found.pop(None) == "gated"
        assert len(found) == 8
        for view, branch in found.items():
            assert branch == ("gated" if view.index in (0, 2) else "dense")
    everything = gated_encoder("vicreg_gating")
    with encoding(1):
        everything(x)
    assert branches_of(everything) == {View(1, "online"): "gated"}


def test_warm_up_is_dense():
    backbone = gated_encoder(warmup_gate=True, warmup_epochs=3)
    context = gating_of(backbone).context
    with encoding(0):
        context.epoch = 2
        assert context.branch == "dense"
        context.epoch = 3
        assert context.branch == "gated"
    assert gating_of(gated_encoder()).method.branch_of(View(0, "online"), 0) == "gated"


def test_the_chosen_branch_of_passes_that_nobody_announced():
    backbone, x = gated_encoder(eval="dense").train(), torch.randn(2, 3, 8, 8)
    backbone(x)
    assert branches_of(backbone) == {None: "dense"}
    with encoding(0):
        backbone(x)
    assert branches_of(backbone)[View(0, "online")] == "gated"
    assert choose(backbone, "gated") is backbone
    backbone(x)
    assert branches_of(backbone)[None] == "gated"
    with pytest.raises(ConfigError, match="Did you mean 'dense'"):
        choose(backbone, "dnse")
    with pytest.raises(ConfigError, match="no gates"):
        choose(plain_encoder(), "dense")
    with pytest.raises(ConfigError, match="no such branch"):
        choose(gated_encoder("vicreg_gating"), "dense")


def test_means_over_the_images_of_an_evaluation():
    backbone = gated_encoder().eval()
    context = gating_of(backbone).context
    rhos, rates = [], []
    with torch.no_grad():
        for n in (2, 6):
            backbone(torch.randn(n, 3, 8, 8))
        assert context.tape == {}
        context.collect()
        torch.manual_seed(3)
        for n in (2, 6):
            x = torch.randn(n, 3, 8, 8)
            for image in x:  # one by one: the mean must not depend on the batches
                with torch.enable_grad():
                    backbone(image[None])
                done = context.tape[None]
                rhos.append(done.rho.item())
                rates.append(done.layers["layer3.1"].figures["rate"].item())
        context.collect()
        torch.manual_seed(3)
        for n in (2, 6):
            backbone(torch.randn(n, 3, 8, 8))
    means = context.collect()
    assert means["rho"] == pytest.approx(sum(rhos) / 8, rel=1e-5)
    assert means["flops_reduction"] == pytest.approx(1 - sum(rhos) / 8, rel=1e-5)
    assert means["rate/layer3.1"] == pytest.approx(sum(rates) / 8, rel=1e-5)
    assert means["macs_effective"] == pytest.approx(means["rho"] * means["macs_dense"])
    assert context.collect() == {}


def test_copies_stand_on_their_own():
    backbone, x = gated_encoder(), torch.randn(2, 3, 8, 8)
    backbone(x)  # leaves a graph on the tape
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        context = gating_of(twin).context
        assert context is not gating_of(backbone).context
        assert context.tape == {}
        choose(twin, "dense")
        twin(x)
        assert branches_of(twin) == {None: "dense"}
        assert all(layer.context is context for layer in gating_of(twin).layers.values())
    assert gating_of(backbone).context.evaluation == "gated"


def test_a_pass_that_failed_leaves_no_trace():
    backbone = gated_encoder()
    with pytest.raises(RuntimeError), encoding(1):
        backbone(torch.randn(2, 5, 8, 8))
    backbone(torch.randn(2, 3, 8, 8))
    assert branches_of(backbone) == {None: "gated"}


def test_weights_say_how_they_are_gated():
    source = gated_encoder(budget=0.4, gate_bias_init=1.0)
    choose(source, "dense")
    backbone = rebuild(plain_encoder(), source.state_dict())
    backbone.load_state_dict(source.state_dict())
    config = gating_of(backbone).config
    assert (config.budget, config.gate_bias_init, config.eval) == (0.4, 1.0, "dense")
    x = torch.randn(2, 3, 8, 8)
    for branch in ("dense", "gated"):
        assert torch.equal(choose(backbone, branch).eval()(x), choose(source, branch).eval()(x))
    assert rebuild(plain_encoder(), plain_encoder().state_dict()).state_dict().keys()


def test_two_encoders_come_back():
    source = gated_encoder(encoders=2)
    backbone = rebuild(plain_encoder(), source.state_dict())
    backbone.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(backbone.eval()(x), source.eval()(x))
    gating_of(backbone).context.collect()
    choose(backbone, "dense")(x)  # has no gated layer at all
    means = gating_of(backbone).context.collect()
    assert means["times_fewer_macs"] == means["times_fewer_macs_gated"] == 1


def test_weights_of_other_gates():
    source = gated_encoder(budget=0.4)
    for broken in (lambda b, s: b.load_state_dict(s), lambda b, s: rebuild(b, s)):
        with pytest.raises(CheckpointError, match=r"gating\.budget is 0\.25 here.*with 0\.4"):
            broken(gated_encoder(budget=0.25), source.state_dict())
        with pytest.raises(CheckpointError, match="gates"):
            broken(gated_encoder(), plain_encoder().state_dict())
    state = source.state_dict()
    state[CONFIG_KEY] = torch.tensor(list(b'{"name": "of_the_future"}'), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="of_the_future"):
        rebuild(plain_encoder(), state)


def test_the_chosen_branch_survives_loading():
    source = gated_encoder(eval="gated")
    backbone = gated_encoder(eval="dense")
    backbone.load_state_dict(source.state_dict())
    assert gating_of(backbone).context.evaluation == "dense"
    assert b'"dense"' in bytes(backbone.state_dict()[CONFIG_KEY].tolist())
