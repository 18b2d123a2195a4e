# SPDX-License-Identifier: MIT
"""The benchmark of single weights: its JSON has the keys that it promises, peers among them."""

import argparse
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
FOLDER = Path(__file__).parents[2] / "benchmarks"
PROGRAM = """
runs = [lambda: time.sleep(0)] * len(files)
assert all(os.path.getsize(f) > 1000 for f in files) and shape == [2, 3, 8, 8]
"""


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import element_conv
    import engines

    yield element_conv, engines
    for name in ("routes", "measuring", "element_conv", "engines"):
        sys.modules.pop(name, None)


def settings(**changed):
    given = {"backbone": "resnet18", "size": 8, "width": 4, "sparsity": [0.5, 0.9], "batch": 2}
    given |= {"threads": 1, "rounds": 1, "allocation": "uniform", "dense_gradient": False}
    return argparse.Namespace(
        **(given | {"activities": ["step", "inference"], "peers": []} | changed)
    )


def test_keys_are_activities_and_sparsities(benchmark):
    element_conv, _ = benchmark
    found = element_conv.measure(settings())
    names = ["step_fp32", "step_bf16", "inference_fp32", "inference_bf16", "peers"]
    assert sorted(found) == sorted(names)
    assert found["peers"] == {}
    for name in names[:4]:
        assert sorted(found[name]) == ["0", "50", "90"]
    assert found["step_fp32"]["0"] == found["inference_fp32"]["0"] == 1


def test_a_peer_takes_turns_in_a_process_of_its_own(benchmark, monkeypatch):
    pytest.importorskip("onnx")
    element_conv, engines = benchmark
    monkeypatch.setattr(engines, "environment", lambda name, engine: Path(sys.executable))
    engine = engines.Engine("inference_fp32", (), PROGRAM)
    gone = engines.Engine("inference_fp32", (), "raise SystemExit(3)")
    trains = engines.Engine("step_fp32", (), PROGRAM, uses_torch=True)
    monkeypatch.setattr(engines, "ENGINES", {"quick": engine, "gone": gone, "trains": trains})
    monkeypatch.setattr(element_conv, "ENGINES", engines.ENGINES)
    found = element_conv.measure(settings(peers=["quick", "gone", "trains"]))["peers"]
    assert sorted(found) == ["quick", "trains"]
    assert sorted(found["quick"]["inference_fp32"]) == ["50", "90"]
    assert min(found["quick"]["inference_fp32"].values()) > 1  # than a network's inference
    assert sorted(found["trains"]["step_fp32"]) == ["50", "90"]


def test_an_engine_that_cannot_be_installed_is_left_out(benchmark, monkeypatch, tmp_path, capsys):
    _, engines = benchmark
    monkeypatch.setattr(engines, "cache_folder", lambda: tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    nothing = engines.Engine("inference_fp32", ("no-such-engine",), "")
    assert engines.environment("nothing", nothing) is None
    assert "nothing is left out" in capsys.readouterr().out
    assert not (tmp_path / "peers" / "nothing" / "done").exists()
