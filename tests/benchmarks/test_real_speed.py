# SPDX-License-Identifier: MIT
"""The benchmark of routes measures what it says: the same features, the share that it names."""

import queue
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.unit
FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import real_speed
    import routes

    yield real_speed, routes
    for name in ("real_speed", "routes", "measuring", "element_conv", "engines"):
        sys.modules.pop(name, None)


def test_a_network_that_cannot_be_made_that_small_is_not_called_slim(benchmark):
    _, routes = benchmark
    net = routes.network("resnet18", 16)  # its first layers have 16 channels
    with pytest.raises(routes.Unreachable, match=r"takes 95% of the parameters.*multiples of 16"):
        routes.pruned(net, 0.95, "filter", "uniform")


def test_routes_and_their_table(benchmark, tmp_path, monkeypatch):
    real_speed, routes = benchmark
    monkeypatch.setattr(routes, "use_block_kernel", lambda net: net)  # needs a compiler
    monkeypatch.setattr(real_speed, "memory", lambda *args: 1.0)
    monkeypatch.setattr(routes, "MULTIPLE", 4)
    found = routes.routes(routes.network("resnet18", 8), 0.9, "uniform", tmp_path)
    by_name = {route.name: route for route in found}
    dense, slim = by_name["dense"], by_name["slim"]
    assert 0.05 < slim.parameters / dense.parameters <= 0.1
    assert all(route.off < (1e-3 if "16" in route.name else 1e-5) for route in found)
    packed = by_name["packed file"].file.stat().st_size
    assert packed < dense.file.stat().st_size / 6
    widths = [conv.out_channels for conv in slim.nets[0].modules() if hasattr(conv, "out_channels")]
    assert not any(width % 4 for width in widths)
    images = torch.randn(2, 3, 32, 32)
    steps, runs = (real_speed.measure(found, images, 1, trains) for trains in (True, False))
    assert set(steps) == {"dense", "masked", "blocks, own kernel", "slim"}
    lines = real_speed.table(found, steps, runs).splitlines()
    assert len(lines) == 2 + len(found)
    assert {line.count("|") for line in lines} == {11}
    assert lines[2].startswith("| dense | 1")
    assert " 1.00x " in lines[2]


def test_blocks_are_the_share_of_every_layer(benchmark):
    _, routes = benchmark
    from sparse_ext.kernels.layer import window_of
    from sparse_ext.kernels.plan import Plan
    from sparse_ext.masks.masked_layers import masked_layers

    net = routes.pruned(routes.network("resnet18", 16), 0.8, "block8", "uniform")
    for layer in masked_layers(net).values():
        plan = Plan(layer.mask, window_of(layer))
        assert abs(plan.sparsity - 0.8) < 1 / (plan.blocks[0] * plan.blocks[1])


def test_peak_memory_is_that_of_the_work(benchmark):
    """In this process; in one of its own it is the same function."""
    import measuring

    found = queue.Queue()
    measuring._measure(found, lambda: None, lambda mb: lambda: torch.ones(mb << 18), (200,))
    assert found.get() == pytest.approx(200, abs=20)
    with pytest.raises(ZeroDivisionError):
        measuring._measure(found, lambda: 1 / 0, lambda: None, ())
    assert found.get() == "ZeroDivisionError: division by zero"


def test_the_fastest_round_counts(benchmark):
    import measuring

    rounds = []

    def work():
        rounds.append(0)
        end = time.process_time() + (0.05 if len(rounds) < 3 else 0.01)
        while time.process_time() < end:
            pass

    (seconds,) = measuring.fastest([work], 3)
    assert len(rounds) == 4
    assert 0.01 <= seconds < 0.03
