# SPDX-License-Identifier: MIT
"""Without a compiler, with one that fails, and on processors that cannot."""

import logging
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from solo.errors import ConfigError
from sparse_ext.kernels import KernelBuildError
from sparse_ext.kernels.element import choice, native
from sparse_ext.kernels.element.swap import use_element_kernel
from sparse_ext.masks.masked_layers import MaskedConv2d, MaskedLinear, mask_module
from tests.kernels.helpers import able, masked_conv, prune

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
    monkeypatch.setattr(choice, "_builder", None)
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


@able
def test_built_beside_training_and_waited_for_where_it_is_of_use(fresh, caplog):
    """A dense layer begins; the same layer waits once it is sparse, and the stem with it."""
    begun, go = threading.Event(), threading.Event()
    real = native.compile_to
    fresh.setattr(native, "compile_to", lambda *args: (begun.set(), go.wait(30), real(*args)))
    fresh.setattr(choice, "WORTHWHILE", 0)
    fresh.setattr(choice, "measure", lambda case, density: True)
    fresh.setattr(logging.getLogger("sparse_ext"), "propagate", True)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), prune(masked_conv(), 0.1))
    use_element_kernel(net, later=True)
    x = torch.randn(4, 3, 6, 6)
    with caplog.at_level("INFO", logger="sparse_ext"):
        net(x)
        net(x)
    assert begun.wait(10)
    assert not net[0].used
    assert not net[1].used
    assert [r.getMessage() for r in caplog.records if "while training goes on" in r.getMessage()]
    prune(net[1], 0.9)
    threading.Timer(0.5, go.set).start()
    net(x)
    assert go.is_set()
    assert net[0].used
    assert net[1].used


@able
def test_a_program_that_ends_first_leaves_no_compiler_behind(tmp_path):
    """Nor half a library."""
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nsleep 60 & wait\n", encoding="utf-8")
    slow.chmod(0o755)
    code = (
        "import pathlib, time\n"
        "from sparse_ext.kernels.element import choice, native\n"
        f"native.SHIPPED = pathlib.Path({str(tmp_path)!r})\n"
        "choice.begin()\n"
        f"while not pathlib.Path({str(tmp_path / 'pid')!r}).exists(): time.sleep(0.05)\n"
    )
    env = os.environ | {"SPARSE_EXT_CACHE": str(tmp_path / "cache"), "CXX": str(slow)}
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=50)
    assert time.monotonic() - began < 50
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    left = sorted(p.suffix for p in (tmp_path / "cache").iterdir())
    assert left == [".lock"]


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
