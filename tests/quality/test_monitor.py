# SPDX-License-Identifier: MIT
"""Quality while training: of which features, what is logged, that nothing is changed by it."""

import math

import pytest
import torch
from torch.utils.data import DataLoader

from solo.methods import METHODS
from solo.quality import alpha_req, lidar, rankme
from solo.quality.monitor import QualityMonitor
from tests.methods.helpers import tiny_batch, tiny_cfg, tiny_trainer

pytestmark = pytest.mark.unit

HEAD = {"proj_hidden_dim": 16, "proj_output_dim": 6}
KWARGS = {
    "simclr": {**HEAD, "temperature": 0.2},
    "byol": {**HEAD, "pred_hidden_dim": 5},
    "dino": {**HEAD, "num_prototypes": 50},
    "wmse": {**HEAD, "whitening_size": 8, "whitening_eps": 0.1},
    "supervised": {},
}
STEPS, N = 3, 8


def loader(large=2):
    indexes, views, targets = tiny_batch(STEPS * N, large)
    return DataLoader([(int(i), [v[i] for v in views], targets[i]) for i in indexes], batch_size=N)


def build(name, **changes):
    torch.manual_seed(0)
    return METHODS[name](tiny_cfg(name, KWARGS[name], optimizer__batch_size=N, **changes))


def fit(model, monitor, epochs=1, large=2):
    trainer = tiny_trainer(max_epochs=epochs, callbacks=[monitor], limit_val_batches=0)
    trainer.fit(model, loader(large))
    return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("quality/")}


@pytest.mark.parametrize("images", [N, 2 * N, 1000])
def test_measures_are_those_of_the_last_steps_features(images, monkeypatch):
    model, seen = build("byol"), []
    plain = model._shared_step_momentum, model._base_shared_step

    def momentum(X, targets):
        out = plain[0](X, targets)
        seen.append(("momentum", out["feats"].detach(), out["z"].detach()))
        return out

    def online(X, targets):
        out = plain[1](X, targets)
        seen.append(("online", out["feats"].detach(), out["z"].detach()))
        return out

    monkeypatch.setattr(model, "_shared_step_momentum", momentum)
    monkeypatch.setattr(model, "_base_shared_step", online)
    figures = fit(model, QualityMonitor(images))
    steps = min(STEPS, math.ceil(images / N))
    for encoder, prefix in (("online", ""), ("momentum", "momentum_")):
        passes = [s for s in seen if s[0] == encoder][-2 * steps :]  # two views a step
        for index, part in ((1, "backbone"), (2, "projector")):
            views = [torch.cat([p[index] for p in passes[v::2]]) for v in range(2)]
            x = torch.stack(views, dim=1)
            rows = x.flatten(0, 1)
            name = f"quality/{prefix}{part}"
            assert figures[f"{name}_rankme"] == pytest.approx(float(rankme(rows)))
            assert figures[f"{name}_lidar"] == pytest.approx(float(lidar(x)))
            assert figures[f"{name}_alpha_req"] == pytest.approx(
                float(alpha_req(rows)), nan_ok=True
            )
    assert figures["quality/samples"] == 2 * steps * N


@pytest.mark.parametrize("name", KWARGS)
def test_a_run_is_the_same_with_and_without(name):
    with_it, without = build(name), build(name)
    torch.manual_seed(1)
    fit(with_it, QualityMonitor(16), epochs=2)
    torch.manual_seed(1)
    tiny_trainer(max_epochs=2, limit_val_batches=0).fit(without, loader())
    for key, value in with_it.state_dict().items():
        assert torch.equal(value, without.state_dict()[key])
    assert not any(m._forward_hooks for m in with_it.modules())


def test_dinos_bottleneck_is_measured_not_its_prototypes():
    figures = fit(build("dino"), QualityMonitor(1000))
    assert 1 <= figures["quality/projector_rankme"] <= 6.001


def test_one_view_has_no_lidar_and_a_method_without_projector_no_projector():
    figures = fit(build("supervised", data__num_large_crops=1), QualityMonitor(1000), large=1)
    assert set(figures) == {
        "quality/samples",
        "quality/backbone_rankme",
        "quality/backbone_alpha_req",
    }


def test_every_second_epoch():
    monitor = QualityMonitor(1000, every=2)
    assert not fit(build("simclr"), monitor)
    assert fit(build("simclr"), QualityMonitor(1000, every=2), epochs=2)


class Collapsed(METHODS["simclr"]):
    """Gives every image the same features."""

    def forward(self, X):
        out = super().forward(X)
        return {**out, "z": out["z"] * 0 + 1}

    def training_step(self, batch, batch_idx):
        out = METHODS["base"].training_step(self, batch, batch_idx)
        return out["loss"] * 0 + 0.7


def test_a_collapsed_run_is_named_once(capsys):
    torch.manual_seed(0)
    model = Collapsed(tiny_cfg("simclr", KWARGS["simclr"], optimizer__batch_size=N))
    with torch.no_grad():
        for p in model.projector.parameters():
            p.zero_()
        model.projector[-1].bias.fill_(1.0)
    fit(model, QualityMonitor(1000), epochs=4)
    printed = capsys.readouterr().out
    assert printed.count("COLLAPSED: after epoch 2 RankMe of the projector is 1.0") == 1
    assert "the loss stays at 0.7" in printed


def test_a_healthy_run_is_not_named(capsys):
    fit(build("simclr"), QualityMonitor(1000), epochs=3)
    assert "COLLAPSED" not in capsys.readouterr().out


def test_a_resumed_run_remembers_the_losses_before(tmp_path):
    first = QualityMonitor(1000)
    first._losses, first._named = [3.0, 2.0], True
    second = QualityMonitor(1000)
    second.load_state_dict(first.state_dict())
    assert (second._losses, second._named) == ([3.0, 2.0], True)
