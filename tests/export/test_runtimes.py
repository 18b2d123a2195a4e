# SPDX-License-Identifier: MIT
"""Exports in ONNX Runtime, torchvision and timm."""

import pytest
import torch
from torch import nn

from sparse_ext.export import (
    load_slim,
    slim,
)
from sparse_ext.export.__main__ import main
from sparse_ext.masks.masked_layers import masked_layers
from tests.export.nets import encoder, features, masked
from tests.export.test_slim import ARGS, nm_net, pruned, run_folder

pytestmark = pytest.mark.unit


@pytest.fixture
def checkpoint(tmp_path):
    return run_folder(tmp_path / "run", pruned(), pruned(1))


def test_onnx_runtime_computes_the_same(checkpoint, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from sparse_ext.export import OnnxEncoder

    assert main(["onnx", str(checkpoint)]) == 0
    loaded = OnnxEncoder(checkpoint.with_name("last-onnx.onnx"), threads=1)
    for n in (1, 5):
        torch.testing.assert_close(
            features(loaded, 32, n), features(pruned(), 32, n), rtol=1e-4, atol=1e-4
        )
    done = slim(checkpoint)
    assert main(["onnx", str(done.path)]) == 0
    assert "differ by" in capsys.readouterr().out
    smaller = OnnxEncoder(done.path.with_name(f"{done.path.stem}-onnx.onnx"), threads=1)
    torch.testing.assert_close(
        features(smaller, 32), features(load_slim(done.path), 32), rtol=1e-4, atol=1e-4
    )
    assert main(["nm", str(checkpoint)]) == 2
    assert "is not 2:4" in capsys.readouterr().err


def test_nm_onnx_in_onnx_runtime(tmp_path, capsys):
    """What TensorRT is given: computed by ONNX Runtime, and 2:4 in the file itself."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from sparse_ext.export import OnnxEncoder

    args = {**ARGS, "sparse": {"name": "gmp", "granularity": "2:4", "final": 1.0}}
    checkpoint = run_folder(tmp_path, nm_net(), args=args)
    assert main(["nm", str(checkpoint)]) == 0
    assert "19 layers are 2:4" in capsys.readouterr().out
    path = tmp_path / "last-nm.onnx"
    loaded = OnnxEncoder(path, threads=1)
    torch.testing.assert_close(
        features(loaded, 32), features(nm_net_of(checkpoint), 32), rtol=1e-4, atol=1e-4
    )
    weights = [onnx.numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer]
    convs = [w for w in weights if w.ndim == 4 and w.shape[1] % 4 == 0]
    assert len(convs) == 19
    for weight in convs:
        groups = weight.transpose(0, 2, 3, 1).reshape(-1, 4)
        assert ((groups != 0).sum(1) <= 2).all()


def nm_net_of(checkpoint):
    net = encoder(width=8, seed=9)
    state = torch.load(checkpoint)["state_dict"]
    net.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in state.items() if "mask" not in k}
    )
    return net


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_dense_files_load_in_other_libraries(library, tmp_path):
    """Strictly, as safetensors, into their own model; masked weights are zeros there."""
    from safetensors.torch import load_file

    if library == "torchvision":
        from torchvision.models import resnet18

        theirs, name, dataset = resnet18(), "resnet18", "imagenet100"
        theirs.fc = nn.Identity()
    else:
        timm = pytest.importorskip("timm")
        name, dataset = "vit_tiny_patch16_224", "imagenet100"
        theirs = timm.create_model(name, num_classes=0, img_size=32, depth=2)
    kwargs = {} if library == "torchvision" else {"img_size": 32, "depth": 2}
    net = masked(encoder(name, dataset, **kwargs), granularity="element")
    for layer in masked_layers(net).values():
        layer.mask.copy_(torch.rand(layer.mask.shape) < 0.5)
        layer.apply_mask()
    args = {
        **ARGS,
        "backbone": {"name": name, "kwargs": kwargs},
        "data": {"dataset": dataset},
        "sparse": {"name": "gmp", "final": 0.5},
    }
    checkpoint = run_folder(tmp_path, net, args=args)
    assert main(["dense", str(checkpoint), "--input_size", "32"]) == 0
    theirs.load_state_dict(load_file(tmp_path / "last-dense.safetensors"))
    torch.testing.assert_close(features(theirs, 32), features(net, 32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny"])
def test_openvino_computes_the_same(name, int8, tmp_path):
    """Slim encoders in float32, and their 8-bit files as ONNX Runtime runs them."""
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    from sparse_ext.export import OnnxEncoder, export_onnx
    from sparse_ext.export.int8 import quantise
    from sparse_ext.export.survey import examine

    kwargs = {"img_size": 32, "patch_size": 16, "depth": 2} if name == "vit_tiny" else {"width": 8}
    net = encoder(name, **kwargs)
    assert examine(net)["removed"] > 0.3
    path = export_onnx(net, tmp_path / "slim.onnx", 32)
    if int8:
        path = quantise(path, tmp_path / "int8.onnx", [torch.randn(16, 3, 32, 32)])
    images = torch.randn(3, 3, 32, 32)
    full = {"INFERENCE_PRECISION_HINT": "f32"}  # otherwise bfloat16 where the processor has it
    model = openvino.compile_model(openvino.Core().read_model(path), "CPU", full)
    theirs = model(images.numpy())[0]
    with torch.no_grad():
        ours = OnnxEncoder(path, threads=1)(images) if int8 else net.eval()(images)
    close = torch.nn.functional.cosine_similarity(torch.from_numpy(theirs), ours)
    assert close.min() > (0.95 if int8 else 1 - 1e-5)


def test_onnx_missing(checkpoint, monkeypatch, capsys):
    import importlib

    real = importlib.import_module

    def missing(name, *args):
        if name == "onnx":
            raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert main(["onnx", str(checkpoint)]) == 2
    assert "pip install onnx onnxruntime" in capsys.readouterr().err
