# SPDX-License-Identifier: MIT
"""The benchmark of gated inference times what it says: the budget is met, results are equal."""

import importlib.util
from pathlib import Path

import pytest
import torch

from sparse_ext.gating.encoder import gating_of

pytestmark = pytest.mark.unit
FILE = Path(__file__).parents[2] / "benchmarks" / "gated_inference.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("gated_inference", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_encoders_meet_their_budget(benchmark):
    torch.manual_seed(0)
    images = benchmark.pictures(16)
    for budget in (0.2, 0.5):
        net = benchmark.random_encoder(16, budget, images)
        with torch.no_grad():
            net(images)
        assert benchmark.used(net) == pytest.approx(budget, abs=0.02)
        rates = gating_of(net).layers
        assert len(rates) == 8


def test_the_dense_network_is_that_of_the_encoder(benchmark):
    images = benchmark.pictures(16)
    net = benchmark.random_encoder(16, 0.3, images)
    plain = benchmark.folded(net)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in plain.modules())
    from sparse_ext.gating.encoder import choose

    with torch.no_grad():
        torch.testing.assert_close(plain(images), choose(net, "dense")(images), atol=1e-4, rtol=0)


def test_a_line_per_case(benchmark):
    images = benchmark.pictures(16)
    net = benchmark.random_encoder(16, 0.3, images)
    (line,) = benchmark.measure([("budget 30%", net, images)], 4, "cpu", 2)
    name, used, closed, dense, gated, faster, deviation = (
        line[:14].strip(), *line[20:].replace("%", "").split()
    )  # fmt: skip
    assert name == "budget 30%"
    assert float(used) == pytest.approx(30, abs=2)
    assert 0 < float(closed) < 100
    assert float(faster) == pytest.approx(float(dense) / float(gated), rel=0.05)
    assert float(deviation) < 1e-4
