# SPDX-License-Identifier: MIT
"""Which layers take the element-wise kernel, by measurement (`kernel="auto"`)."""

import pytest
import torch
from torch import nn

from sparse_ext.kernels.element import choice
from sparse_ext.kernels.element.layers import ElementConv2d
from sparse_ext.kernels.element.swap import use_element_kernel
from tests.kernels.helpers import able, masked_conv, prune
from tests.kernels.helpers import no_choice_remembered as no_choice_remembered

pytestmark = pytest.mark.unit


@able
def test_auto_takes_what_measures_faster(monkeypatch):
    """Once per case and density; bounds close the rest."""
    asked = []
    monkeypatch.setattr(choice, "WORTHWHILE", 0)
    monkeypatch.setattr(choice, "measure", lambda case, d: asked.append(d) or d < 0.3)
    conv, x = masked_conv(), torch.randn(16, 16, 6, 6)
    use_element_kernel(conv)
    for sparsity, used in ((0.5, False), (0.55, False), (0.8, True), (0.9, True), (0.45, False)):
        prune(conv, sparsity)
        conv(x)
        assert conv.used is used, sparsity
    assert [round(d, 1) for d in asked] == [0.5, 0.4, 0.2]


def test_a_ramp_asks_for_few_measurements(monkeypatch):
    """And what has won holds for every density that it is asked for."""
    asked = []
    monkeypatch.setattr(choice, "measure", lambda case, d: asked.append(d) or d < 0.3)
    case = choice.Case((8, 8, 3, 3), choice.Window(), (16, 8, 5, 5), torch.float32, 1, True, 0.5)
    densities = [1 - 0.999 * step / 500 for step in range(501)]
    found = [choice.pays(case, density) for density in densities]
    assert [round(d, 2) for d in asked] == [0.75, 0.63, 0.53, 0.45, 0.38, 0.32, 0.27]
    assert found == sorted(found)
    assert not any(wins and d >= 0.3 for wins, d in zip(found, densities, strict=True))
    assert all(wins or d > 0.25 for wins, d in zip(found, densities, strict=True))


@able
def test_measuring_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    case = choice.Case((8, 8, 3, 3), choice.Window((1, 1), (1, 1)), (16, 8, 5, 5), torch.float32,
                       1, True, 0.5)  # fmt: skip
    assert isinstance(choice.measure(case, 0.1), bool)
    assert torch.equal(torch.get_rng_state(), state)


@able
@pytest.mark.parametrize(("seconds", "wins"), [(1.4, True), (1.6, False)])
def test_the_kernel_wins_if_it_is_a_tenth_faster(seconds, wins, monkeypatch):
    """By the sum of what a step calls: the dense weight gradient in its share of steps."""
    case = choice.Case((8, 8, 3, 3), choice.Window((1, 1), (1, 1)), (16, 8, 5, 5), torch.float32,
                       1, True, 0.5)  # fmt: skip
    monkeypatch.setattr(choice, "_dense_parts", lambda *_: [(None, 1.0), (None, 1.0)])
    monkeypatch.setattr(choice, "_sparse_parts", lambda *_: [(None, 1.0), (None, 0.5)])
    monkeypatch.setattr(choice, "_fastest", lambda calls: [1.0, 1.0, 1.05, seconds])
    assert choice.measure(case, 0.1) is wins  # 1.75 or 1.85 against 2


@able
def test_small_layers_stay_dense_and_build_nothing(monkeypatch):
    monkeypatch.setattr(choice, "ready", lambda _: pytest.fail("nothing is asked for"))
    conv = masked_conv()
    conv.__class__ = ElementConv2d
    conv.kernel = "auto"
    conv(torch.randn(2, 16, 5, 5))
    assert not conv.used


@able
@pytest.mark.parametrize("sparse", [True, False])
def test_a_dense_stem_follows_the_sparse_layers(sparse, monkeypatch):
    """By their masks, in the very first step too, so that a resumed run goes the same way."""
    monkeypatch.setattr(choice, "WORTHWHILE", 0)
    monkeypatch.setattr(choice, "_bounds", choice.Bounds(None))
    monkeypatch.setattr(choice, "measure", lambda case, density: True)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), masked_conv())
    net[1].mask.fill_(True)
    if sparse:
        net[1].mask[:, 3:] = False
        net[1].apply_mask()
    use_element_kernel(net, "auto")
    net[0](torch.randn(16, 3, 6, 6))
    assert net[0].used == sparse


# -- building ----------------------------------------------------------------------------------


CASES = ["double", "half", "unbatched", "empty", "traced", "fp16 autocast", "counted", "wrong type"]


@able
@pytest.mark.parametrize("what", CASES)
def test_dense_where_the_kernel_is_no_use(what):
    conv = masked_conv()
    use_element_kernel(conv, "element")
    x = torch.randn(16, 16, 5, 5)
    if what in ("double", "half"):
        kind = getattr(torch, what)
        assert conv.to(kind)(x.to(kind)).dtype is kind
    elif what == "unbatched":
        assert conv(x[0]).shape == (24, 5, 5)
    elif what == "empty":
        assert conv(x[:0]).shape == (0, 24, 5, 5)
    elif what == "traced":
        assert torch.jit.trace(conv, x, check_trace=False)(x).shape == (16, 24, 5, 5)
    elif what == "fp16 autocast":
        with torch.autocast("cpu", torch.float16):
            assert conv(x).dtype is torch.float16
    elif what == "counted":
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            conv(x)
        assert counter.get_total_flops() == 2 * 16 * 25 * conv.weight.numel()
    else:
        with pytest.raises(RuntimeError, match=r"should be the same|type"):
            conv(x.bfloat16())
    assert not conv.used
