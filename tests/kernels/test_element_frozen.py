# SPDX-License-Identifier: MIT
"""Frozen encoders with the element-wise kernel, and the kernel as an operator of torch."""

import copy
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from solo.errors import ConfigError
from sparse_ext.kernels.element import choice, native
from sparse_ext.kernels.element.frozen import Faster, faster
from sparse_ext.kernels.element.swap import element_layers
from sparse_ext.masks.masked_layers import Masked
from tests.kernels.helpers import masked_conv, prune
from tests.kernels.test_element_layers import off, resnet

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(
        not native.variant() or not shutil.which("c++"), reason="needs AVX2 and a C++ compiler"
    ),
]


@pytest.fixture(autouse=True)
def every_layer(monkeypatch):
    """All layers take the kernel."""
    monkeypatch.setattr(choice, "_bounds", choice.Bounds(None))
    monkeypatch.setattr(choice, "measure", lambda case, density: True)


def encoder():
    from torchvision.models.resnet import BasicBlock

    return resnet(BasicBlock).eval()


@pytest.mark.parametrize("batch", [1, 2, 7, 16, 20])
def test_a_copy_with_the_same_features(batch):
    net = encoder()
    quick, images = faster(net), torch.randn(batch, 3, 20, 20)
    with torch.no_grad():
        wanted = net(images)
        for _ in range(2):
            assert off(quick(images), wanted) < 1e-5
    assert all(layer.used for layer in element_layers(quick) if hasattr(layer, "mask"))
    assert not any(p.requires_grad for p in quick.parameters())
    assert all(p.requires_grad for p in net.parameters())
    assert not element_layers(net)
    again = pickle.loads(pickle.dumps(quick))
    with torch.no_grad():
        assert off(again(images), wanted) < 1e-5


def test_follows_changes_that_torch_counts():
    net, images = encoder(), torch.randn(4, 3, 16, 16)
    quick = faster(net)
    with torch.no_grad():
        quick(images)
        other = encoder()
        for i, layer in enumerate(m for m in other.modules() if isinstance(m, Masked)):
            layer.weight.normal_()
            prune(layer, 0.8, seed=i)
        for bn in (m for m in other.modules() if isinstance(m, nn.BatchNorm2d)):
            bn.running_mean.normal_()
            bn.weight.uniform_(0.5, 2)
        quick.load_state_dict(other.state_dict())
        assert off(quick(images), other(images)) < 1e-5
        for one in (quick, other):
            one.layer1[0].conv1.weight.mul_(1.5)
            one.bn1.bias.add_(0.5)
        assert off(quick(images), other(images)) < 1e-5


def test_as_a_method_of_a_loaded_encoder():
    net = encoder()
    net.faster = Faster(net)
    twin = copy.deepcopy(net)
    assert twin.faster.encoder is twin
    assert list(twin.state_dict()) == list(net.state_dict())
    assert element_layers(twin.faster())
    with pytest.raises(ConfigError, match="Make the encoder sparse first"):
        faster(nn.Sequential(nn.Conv2d(3, 3, 1)))


def test_the_operator_is_the_convolution():
    conv, x = masked_conv(), torch.randn(5, 16, 7, 7)
    call = torch.ops.sparse_ext.element_conv2d
    arguments = (x, conv.weight, conv.mask, conv.bias, [1, 1], [1, 1], [1, 1])
    torch.testing.assert_close(call(*arguments), conv(x), rtol=1e-5, atol=1e-5)
    leaves = x.clone().requires_grad_(), conv.weight.detach().clone().requires_grad_()
    call(leaves[0], leaves[1], *arguments[2:]).square().sum().backward()
    twin = copy.deepcopy(conv)
    y = x.clone().requires_grad_()
    F.conv2d(y, twin.weight, twin.bias, padding=1).square().sum().backward()
    torch.testing.assert_close(leaves[0].grad, y.grad, rtol=1e-4, atol=1e-4)
    wanted = twin.weight.grad * twin.mask
    torch.testing.assert_close(leaves[1].grad, wanted, rtol=1e-4, atol=1e-3)
    conv.mask.numpy()[:] = False  # not counted by torch: read anew all the same
    assert not (call(*arguments) - conv.bias.view(-1, 1, 1)).any()
    torch.library.opcheck(call, arguments, test_utils=("test_schema", "test_faketensor"))


def test_export_holds_the_operator():
    net, images = encoder(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        program = torch.export.export(faster(net), (images,))
        names = [str(node.target) for node in program.graph.nodes]
        assert sum("element_conv2d" in name for name in names) > 5
        assert off(program.module()(images), net(images)) < 1e-5


def test_compiled_too():
    net, images = encoder(), torch.randn(2, 3, 16, 16)
    compiled = torch.compile(faster(net), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert off(compiled(images), net(images)) < 1e-5


@pytest.mark.slow
def test_a_wheel_holds_every_variant(tmp_path):
    """Built by one command; what it holds is found before the cache and needs no compiler."""
    import subprocess
    import sys
    import zipfile

    command = [sys.executable, "-m", "sparse_ext.kernels.build", "--wheel", "--out", str(tmp_path)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "manylinux" in wheel.name or "linux_x86_64" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    for variant in native.VARIANTS:
        assert f"sparse_ext/kernels/element/libraries/{native.file_name(variant)}" in names


@pytest.mark.slow
def test_memory_errors_are_none(tmp_path, monkeypatch):
    """The grid of test_element.py under the address sanitizer, in a process that preloads it."""
    import subprocess
    import sys

    runtime = [  # the sanitizer looks for the functions of libstdc++ when it starts
        subprocess.run(
            ["c++", f"-print-file-name={library}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for library in ("libasan.so", "libstdc++.so.6")
    ]
    name = native.variant()
    folder = tmp_path / "cache"
    folder.mkdir()
    flags = ("-fsanitize=address", "-fno-omit-frame-pointer", "-g", "-O1")
    native.compile_to(folder / native.file_name(name), name, flags)
    environment = {
        **os.environ,
        "SPARSE_EXT_CACHE": str(folder),
        "LD_PRELOAD": " ".join(runtime),
        "ASAN_OPTIONS": f"detect_leaks=0:verify_asan_link_order=0:log_path={tmp_path / 'report'}",
        "OMP_NUM_THREADS": "1",
    }
    tests = str(Path(__file__).with_name("test_element.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests]
    chosen = f"{name} and (contiguous or rounds)"
    done = subprocess.run(
        [*command, "-k", chosen], env=environment, capture_output=True, text=True, check=False
    )
    found = [path.read_text() for path in tmp_path.glob("report*")]  # pytest captures stderr
    assert not found, found[0][:3000]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
