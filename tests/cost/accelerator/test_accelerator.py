# SPDX-License-Identifier: MIT
"""The cycle model against one written out by hand for ResNet-18 on 32x32 images."""

import json
import math

import pytest
import torch
from torch import nn

from sparse_ext.cost.accelerator import cycle_model
from sparse_ext.cost.accelerator.__main__ import main
from sparse_ext.cost.accelerator.cycle_model import Layer, Machine, cycles, path, speed_up
from sparse_ext.masks.masked_layers import masked_layers
from tests.export.nets import encoder, masked

pytestmark = pytest.mark.unit


def resnet18_cifar():
    """(inputs, outputs, kernel, side in, side out) of every convolution, stem padding 1."""
    found, channels, side = [(3, 64, 3, 32, 32)], 64, 32
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            out = side // 2 if stage and not block else side
            found += [(channels, width, 3, side, out), (width, width, 3, out, out)]
            found += [(channels, width, 1, side, out)] if out != side else []
            channels, side = width, out
    return found


def by_hand(online, momentum, batch=256):
    """The formulas of the model, 16 cores, 16 lanes, 16 bytes per cycle, FP8."""
    total, weights = 0.0, 0
    for i, (ci, co, k, a, b) in enumerate(resnet18_cifar()):
        w, size = k * k * ci * co, ci * a * a + co * b * b
        tiles = k * k * math.ceil(ci / 8) * math.ceil(co / 8)
        weights += w

        def phase(share, tiles=tiles, w=w, size=size, b=b):
            multiply = math.ceil(b * b / 16) * tiles * share * batch
            return max(multiply, (size * batch + w * share) / 16)

        on, off = (1, 1) if i == 0 else (online, momentum)
        total += phase(on) + (phase(on) if i else 0) + phase(1) + phase(off)
        total += (3 + 5 + 3) * co * b * b * batch / 16
    return 2 * total + 6 * weights / 16


def layers():
    return [
        Layer(
            str(i), k * k * math.ceil(ci / 8) * math.ceil(co / 8), k * k * ci * co, ci * a * a,
            co * b * b, b * b, i == 0, True,
        )
        for i, (ci, co, k, a, b) in enumerate(resnet18_cifar())
    ]  # fmt: skip


@pytest.mark.parametrize(("online", "momentum", "expected"), [(0.2, 0.5, 1.734), (0.1, 0.4, 1.887)])
def test_uniform_density_at_the_final_sparsity(online, momentum, expected):
    """The paper prints 1.74 and 1.91."""
    names = [layer.name for layer in layers()[1:]]
    shares = [dict.fromkeys(names, online), dict.fromkeys(names, momentum)]
    found = speed_up(layers(), shares, shares, [(1.0, 10)], Machine())
    assert found.final == pytest.approx(expected, abs=0.001)
    assert found.final == pytest.approx(by_hand(1, 1) / by_hand(online, momentum))
    assert found.run == pytest.approx(found.final)
    assert (found.online, found.momentum) == (
        pytest.approx(1 - online),
        pytest.approx(1 - momentum),
    )


def test_layers_are_measured():
    """On the network itself: blocks, maps and pixels."""
    net = encoder(dataset="cifar10")
    net.conv1.padding = (1, 1)  # the paper's stem
    found, wanted = cycle_model.measure(net, 32), layers()
    key = lambda x: (x.blocks, x.weights, x.inputs, x.outputs, x.pixels, x.first, x.vector)  # noqa: E731
    assert sorted(map(key, found)) == sorted(map(key, wanted))


def test_blocks_are_counted_in_the_masks():
    net = masked(encoder(width=16), granularity="element")
    mask = masked_layers(net)["layer1.0.conv1"].mask
    mask[:8, :8, 0, 0] = False
    mask[8:, :8, 2, 1] = False
    mask[8, 0, 2, 1] = True  # one weight keeps a block
    kept = cycle_model.kept_blocks(net)
    assert kept["layer1.0.conv1"] == 1 - 1 / 36
    assert kept["layer1.0.conv2"] == 1


def test_the_schedule():
    """Cubic: index 0..2 of a ramp from step 4, period 3, then constant."""
    state = {"t": 20, "ramp": [4, 3, 2], "begins": [0.3], "aims": [0.8]}
    parts = path(state)
    assert [n for _, n in parts] == [4, 3, 3, 10]
    assert [p for p, _ in parts] == pytest.approx([0, 0, 1 - 0.5**3, 1])
    assert sum(n for _, n in path({**state, "t": 8})) == 8
    assert path({**state, "ramp": None, "aims": [0.3]}) == [(1.0, 20)]


def test_a_run_costs_the_sum_of_its_steps():
    layer = Layer("a", 100, 6400, 10, 10, 16, False, False)
    machine = Machine(update_passes=0, dense_gradients=False)
    now, initial = [{"a": 0.2}], [{"a": 0.7}]
    found = speed_up([layer], now, initial, [(0.0, 5), (0.5, 10), (1.0, 5)], machine)
    dense = cycles([layer], {}, None, machine)
    each = [cycles([layer], {"a": share}, None, machine) for share in (0.7, 0.45, 0.2)]
    assert found.run == pytest.approx(dense * 20 / (5 * each[0] + 10 * each[1] + 5 * each[2]))
    assert found.final == pytest.approx(dense / each[2])


def test_command(tmp_path, capsys):
    net = masked(encoder(width=8), granularity="block8")
    for layer in masked_layers(net).values():
        layer.mask[: layer.mask.shape[0] // 2] = False
        layer.apply_mask()
    args = {
        "method": "simclr",
        "backbone": {"name": "resnet18", "kwargs": {"width": 8}},
        "data": {"dataset": "cifar10"},
        "sparse": {"name": "gmp", "granularity": "block8"},
    }
    state = {"t": 10, "ramp": [0, 5, 1], "begins": [0.0], "aims": [0.5]}
    content = {"state_dict": {f"backbone.{k}": v for k, v in net.state_dict().items()}}
    (tmp_path / "args.json").write_text(json.dumps(args))
    torch.save({**content, "sparse_state": state}, tmp_path / "run.ckpt")
    assert main([str(tmp_path / "run.ckpt"), "--batch", "64"]) == 0
    out = capsys.readouterr().out
    assert "batch = 64" in out
    assert "cores = 16" in out
    assert "80%: 1.74x; 90%: 1.91x" in out
    assert "nothing is measured" in out
    torch.save(content, tmp_path / "run.ckpt")
    assert main([str(tmp_path / "run.ckpt")]) == 2
    assert "holds no sparse run" in capsys.readouterr().err


def test_linear_layers_have_no_vector_passes():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 16))
    (layer,) = cycle_model.measure(net, 4)
    assert (layer.blocks, layer.pixels, layer.vector) == (12, 1, False)
