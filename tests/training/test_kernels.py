# SPDX-License-Identifier: MIT
"""Runs with `sparse.kernel`: the same training, switched on where it pays, timed."""

import logging
import shutil

import pytest
import torch
from lightning.pytorch import Callback

from solo.errors import ConfigError
from solo.utils.encoders import encoders_of
from sparse_ext.config.sections import build as build_config
from sparse_ext.kernels.element import choice, native
from sparse_ext.kernels.element.swap import element_layers
from sparse_ext.masks.masking import patch
from sparse_ext.training import kernels
from sparse_ext.training.attach import attach
from tests.pruning.toys import data, toy, trainer

pytestmark = pytest.mark.unit
able = pytest.mark.skipif(
    not native.variant() or not shutil.which("c++"), reason="needs AVX2 and a C++ compiler"
)
SYNCCP = {"final": 0.9, "gap": 0.2, "update_period": 2, "csi": {"mode": "off"}}


@pytest.fixture
def built(monkeypatch):
    """The kernel is there; layers may be as small as they like."""
    choice.wait()
    monkeypatch.setattr(choice, "WORTHWHILE", 0)
    monkeypatch.setattr(choice, "_bounds", choice.Bounds(None))


class Seen(Callback):
    """Which layers of either encoder used the kernel last, before they become plain again."""

    def on_train_end(self, run, module):
        encoders = encoders_of(module).values()
        self.used = [[layer.used for layer in element_layers(net)] for net in encoders]


def train(kernel, method="synccp", **options):
    torch.manual_seed(0)
    module, seen = toy(width=16), Seen()
    attach(module, build_config({"name": method, "kernel": kernel, **options}))
    run = trainer(max_steps=12, callbacks=[seen])
    run.fit(module, data(width=16))
    assert not [layer for net in encoders_of(module).values() for layer in element_layers(net)]
    return module, seen.used, run


@able
@pytest.mark.parametrize("every", [1, 3])
def test_the_run_is_that_of_the_dense_kernel(built, every):
    """Weights, masks and scores of both encoders, with the gradients of pruned weights."""
    options = SYNCCP | {"score_every": every}
    (wanted, none, _), (found, used, _) = (
        train(kernel, **options) for kernel in ("dense", "element")
    )
    assert none == [[], []]
    assert [set(layers) for layers in used] == [{True}, {True}]
    for (name, a), b in zip(found.state_dict().items(), wanted.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@able
def test_gradients_of_pruned_weights_in_every_third_step(built, monkeypatch):
    asked = []
    real = kernels.announce
    monkeypatch.setattr(
        kernels, "announce", lambda m, w, share: (asked.append((w, share)), real(m, w, share))
    )
    train("element", score_every=3, **SYNCCP)
    assert [wanted for wanted, _ in asked] == [step % 3 == 0 for step in range(len(asked))]
    assert {share for _, share in asked} == {1 / 3}


def test_the_score_is_a_mean_with_the_same_memory():
    """A constant |gradient| of 1 gives 1 - gamma ** t, whether looked at always or sometimes."""
    from sparse_ext.pruning.scores.scorers import ema_gradient_

    for every in (1, 5):
        score = torch.zeros(1)
        for _ in range(0, 20, every):
            ema_gradient_([score], [torch.ones(1)], 0.9**every)
        assert score.item() == pytest.approx(1 - 0.9**20, rel=1e-5)


@able
def test_auto_measures_and_switches_on_as_masks_grow_sparse(built, monkeypatch):
    seen = []
    monkeypatch.setattr(choice, "measure", lambda case, d: seen.append(d) or d < 0.4)
    _, used, run = train("auto", **SYNCCP)
    assert max(seen) >= 0.4 > min(seen)
    assert any(used[0])
    assert run.callback_metrics["sparse/seconds_per_step"] > 0
    assert run.callback_metrics["sparse/kernel_layers"] == sum(used[0])


def test_auto_is_dense_where_it_cannot_be_otherwise(monkeypatch):
    monkeypatch.setattr(native, "variant", lambda: "")
    monkeypatch.setattr(choice, "WORTHWHILE", 0)
    monkeypatch.setattr(choice, "_state", {"failed": False})
    native.library.cache_clear()
    assert train("auto", **SYNCCP)[1] == [[], []]


@pytest.mark.parametrize(
    ("section", "options", "why"),
    [
        ({"granularity": "filter", "slim_at": 0.9, "multiple": 2}, {}, "slim_at removes channels"),
        ({"name": "sr_ste", "granularity": "2:4"}, {}, "sr_ste stores no weights as zero"),
        ({}, {"precision": "64-true"}, "no precision=64-true"),
        ({}, {"deterministic": True}, "deterministic=True"),
        ({}, {"compiled": True}, "performance.compile"),
        ({"kernel": "dense"}, {}, ""),
        ({}, {}, ""),
    ],
)
def test_the_default_is_dense_where_the_kernel_does_not_go(
    section, options, why, caplog, request, monkeypatch
):
    """One line says so; by name the same is an error (see below)."""
    options = dict(options)
    module = toy(momentum=False, width=16)
    if options.pop("compiled", False):
        module.backbone.compile()
    config = build_config({"name": "gmp", **section})
    patch(module.backbone, config)
    run = trainer(**options)
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    monkeypatch.setattr(logging.getLogger("sparse_ext"), "propagate", True)
    with caplog.at_level("INFO", logger="sparse_ext"):
        equipped = kernels.equip(run, module, config, config.name != "sr_ste")
    able = bool(native.variant()) and not why and config.kernel != "dense"
    assert equipped is able
    assert bool(element_layers(module.backbone)) is able
    told = [r.getMessage() for r in caplog.records if r.name == "sparse_ext"]
    assert len(told) == bool(why and native.variant())
    assert all(why in line and "compute densely" in line for line in told)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kernel": "elemnt"}, "Did you mean 'element'"),
        ({"kernel": "element", "granularity": "filter", "slim_at": 0.9}, "do not go together"),
        ({"name": "synccp", "score_every": 0}, "at least 1 step"),
        ({"name": "synccp", "score_every": 2, "score": "instant"}, "has no effect on .*instant"),
    ],
)
def test_mistakes_in_the_configuration(section, message):
    with pytest.raises(ConfigError, match=message):
        build_config({"name": "gmp", **section})


@pytest.mark.parametrize(("method", "stored"), [("gmp", True), ("sr_ste", False)])
def test_refused_where_it_cannot_be(method, stored):
    options = {} if stored else {"granularity": "2:4"}
    module = toy(momentum=False, width=16)
    attach(module, build_config({"name": method, "kernel": "element", **options}))
    run = trainer(precision="64-true" if stored else "32-true")
    with pytest.raises(ConfigError, match="precision=64" if stored else "stored as zero"):
        run.fit(module, data(width=16))


def test_a_run_that_changes_masks_too_often_is_told():
    watch = kernels.Stopwatch()
    assert watch.advice() == ""
    watch.steps, watch.seconds = 20, 2.0
    for _ in range(20):
        watch.update(0.04)
    # a change costs 0.04 s, a step without it 0.06 s: 0.04 / (0.04 + 13 * 0.06) is 4.9 %
    assert "took 40% of the training steps' time: 20 in 20 steps, 40 ms each" in watch.advice()
    assert "sparse.update_period=13 " in watch.advice()
    assert 0.04 / (0.04 + 13 * 0.06) <= 0.05 < 0.04 / (0.04 + 12 * 0.06)
    watch.seconds = 100.0
    assert watch.advice() == ""
