# SPDX-License-Identifier: MIT
"""Without a compiler, with one that fails, and on processors that cannot."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from solo.errors import ConfigError
from sparse_ext.kernels import KernelBuildError
from sparse_ext.kernels.element import choice, native
from sparse_ext.kernels.element.swap import use_element_kernel
from sparse_ext.masks.masked_layers import MaskedConv2d, MaskedLinear, mask_module
from tests.kernels.helpers import able, masked_conv

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def no_choice_remembered(monkeypatch):
    monkeypatch.setattr(choice, "_bounds", choice.Bounds(None))
    monkeypatch.setattr(choice, "_state", {"failed": False})


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Nothing is built yet."""
    monkeypatch.setenv("SPARSE_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "SHIPPED", tmp_path / "shipped")
    native.library.cache_clear()
    yield monkeypatch
    native.library.cache_clear()


@able
def test_without_a_compiler(fresh, tmp_path, caplog):
    """A named error where it is asked for at once; else one line, and dense layers."""
    fresh.setenv("PATH", str(tmp_path))
    fresh.delenv("CXX", raising=False)
    conv, x = masked_conv(), torch.randn(16, 16, 6, 6)
    with pytest.raises(KernelBuildError, match=r"a C\+\+ compiler \('c\+\+'\) is not on the PATH"):
        use_element_kernel(conv)
    assert type(conv) is MaskedConv2d
    fresh.setattr(logging.getLogger("sparse_ext"), "propagate", True)
    with caplog.at_level("WARNING", logger="sparse_ext"):
        use_element_kernel(conv, "element", later=True)
        wanted = F.conv2d(x, conv.weight, conv.bias, padding=1)
        for _ in range(3):
            assert torch.equal(conv(x), wanted)
    assert not conv.used
    assert len([r for r in caplog.records if "is not on the PATH" in r.getMessage()]) == 1


@able
def test_built_when_a_layer_wants_it(fresh, caplog):
    """Once, into the cache folder, with one line."""
    made = []
    real = native.compile_to
    fresh.setattr(native, "compile_to", lambda *args: (made.append(args), real(*args)))
    conv, x = masked_conv(), torch.randn(16, 16, 6, 6)
    use_element_kernel(conv, "element", later=True)
    assert not made
    fresh.setattr(logging.getLogger("sparse_ext"), "propagate", True)
    with caplog.at_level("INFO", logger="sparse_ext"):
        conv(x)
        conv(x)
    assert conv.used
    assert len(made) == 1
    assert [r.getMessage() for r in caplog.records if "being compiled" in r.getMessage()]
    native.library.cache_clear()
    conv(x)
    assert len(made) == 1


def test_processors_that_cannot(fresh):
    fresh.setattr(native, "variant", lambda: "")
    with pytest.raises(KernelBuildError, match="needs an x86-64 processor with AVX2"):
        use_element_kernel(masked_conv())


@able
def test_a_compiler_that_fails_is_quoted(fresh):
    fresh.setenv("CXX", "c++ --no-such-option")
    with pytest.raises(KernelBuildError, match="no-such-option"):
        use_element_kernel(masked_conv())


@able
def test_nothing_to_use_it_on():
    with pytest.raises(ConfigError, match="Make the encoder sparse first"):
        use_element_kernel(nn.Sequential(nn.Conv2d(8, 8, 3)))
    grouped = mask_module(nn.Conv2d(16, 16, 3, groups=2))
    circular = mask_module(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"))
    with pytest.raises(ConfigError, match=r"'0': 2 channel groups; '1': padding.*circular"):
        use_element_kernel(nn.Sequential(grouped, circular))
    with pytest.raises(ConfigError, match="Did you mean 'element'"):
        use_element_kernel(masked_conv(), "elemnt")
    net = nn.Sequential(grouped, mask_module(nn.Linear(4, 4)))
    assert use_element_kernel(net) == ["1"]
    assert type(net[0]) is MaskedConv2d
    assert isinstance(net[1], MaskedLinear)
