# SPDX-License-Identifier: MIT
"""8-bit ONNX files of dense, slim and N:M encoders, and how their features compare."""

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_ext.export.__main__ import main
from tests.export.nets import features
from tests.export.test_slim import ARGS, nm_net, pruned, run_folder

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from sparse_ext.export import OnnxEncoder, load_slim, slim  # noqa: E402
from sparse_ext.export.int8 import agreement  # noqa: E402

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of smooth random images."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for i in range(24):
            small = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(small).resize((32, 32)).save(root / name / f"{i}.png")
    return root


def weights(path):
    """Initializers by name, as arrays."""
    model = onnx.load(path)
    return model, {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}


@pytest.mark.parametrize("kind", ["dense", "slim", "nm"])
def test_features_agree_with_float32(kind, folder, tmp_path, capsys):
    sparse = {"name": "gmp", "granularity": "2:4", "final": 1.0}
    args = {**ARGS, "sparse": sparse} if kind == "nm" else ARGS
    net = nm_net() if kind == "nm" else pruned()
    path = run_folder(tmp_path, net, args=args)
    if kind == "slim":
        path = slim(path).path
        net = load_slim(path)
    form = "nm" if kind == "nm" else "onnx"
    command = [form, str(path), "--int8", "--calibrate", str(folder), "--images", "24"]
    assert main(command) == 0
    out = capsys.readouterr().out
    row = next(line.split() for line in out.splitlines() if line.startswith("int8"))
    full, small = (path.with_name(f"{path.stem}-{form}{s}.onnx") for s in ("", "-int8"))
    size, took, cosine, neighbours, votes = row[1:]
    assert float(size) == pytest.approx(small.stat().st_size / 1e6, abs=0.006)
    assert float(took) > 0
    assert float(cosine) > 0.99
    assert float(neighbours.rstrip("%")) > 80
    assert float(votes.rstrip("%")) > 80
    assert small.stat().st_size < 0.55 * full.stat().st_size
    found, true = features(OnnxEncoder(small, threads=1), 32), features(net, 32)
    cosines = torch.nn.functional.cosine_similarity(found, true)
    assert cosines.min() > 0.97
    model, tensors = weights(small)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("DequantizeLinear") > kinds.count("Conv") > 0
    assert [o.op_type for o in model.graph.node if o.op_type == "BatchNormalization"] == []
    kernels = [w for w in tensors.values() if w.ndim == 4]
    assert kernels
    assert {w.dtype for w in kernels} == {np.dtype(np.int8)}
    if kind == "nm":
        for kernel in (w for w in kernels if w.shape[1] % 4 == 0):
            groups = kernel.transpose(0, 2, 3, 1).reshape(-1, 4)
            assert ((groups != 0).sum(1) <= 2).all()


def test_agreement_against_loops():
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(30, 6, generator=generator)
    found = full + 0.4 * torch.randn(30, 6, generator=generator)
    labels = torch.arange(30) % 2

    def unit(x):
        return (x / x.norm(dim=1, keepdim=True)).numpy()

    def nearest(x):
        similar = unit(x) @ unit(x).T
        return [[int(j) for j in np.argsort(-similar[i]) if j != i][:20] for i in range(30)]

    pairs = list(zip(nearest(full), nearest(found), strict=True))
    shared = np.mean([len(set(a) & set(b)) / 20 for a, b in pairs])
    same = agreement(full, found, labels)
    assert same.neighbours == pytest.approx(shared)
    assert same.cosine == pytest.approx((unit(full) * unit(found)).sum(1).mean(), rel=1e-5)

    def vote(near):
        return int(sum(int(labels[j]) for j in near) > 10)

    assert same.votes == pytest.approx(np.mean([vote(a) == vote(b) for a, b in pairs]))
    assert agreement(full, found, -torch.ones(30, dtype=torch.long)).votes is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["onnx", "--int8"], "--int8 without --calibrate FOLDER"),
        (["onnx", "--calibrate", "x"], "--calibrate without --int8"),
        (["packed", "--int8", "--calibrate", "x"], "--int8 is for onnx and nm, and packed is no"),
        (["onnx", "--int8", "--calibrate", "nowhere"], "--calibrate nowhere: there is no such"),
        (["onnx", "--int8", "--calibrate", "x", "--images", "1"], "--images 1: at least 2"),
    ],
)
def test_mistakes(words, message, tmp_path, capsys):
    path = run_folder(tmp_path, pruned())
    assert main([words[0], str(path), *words[1:]]) == 2
    assert message in capsys.readouterr().err
