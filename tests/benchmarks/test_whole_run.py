# SPDX-License-Identifier: MIT
"""The benchmark of a whole run: what it reads of a run, and how it compares two."""

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import whole_run

    yield whole_run
    sys.modules.pop("whole_run", None)


def test_epochs_and_last_accuracies_are_read_from_metrics(benchmark, tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(
        "epoch,sparse/online_sparsity,sparse/kernel_layers,sparse/seconds_per_step,val_acc1\n"
        "0,0.3,0,1.5,\n0,,,,40\n1,0.9,7,0.5,\n1,,,,50\n"
    )
    assert benchmark.logged(path) == {
        "sparsity": [0.3, 0.9],
        "layers": [0.0, 7.0],
        "seconds_per_step": [1.5, 0.5],
        "linear": 50.0,
    }


def test_the_ratio_is_that_of_all_seeds_together(benchmark):
    def run(cpu, wall, linear):
        epochs = {"sparsity": [0.9], "layers": [], "seconds_per_step": [1.0]}
        return {"cpu": cpu, "wall": wall, "linear": linear} | epochs

    runs = {"dense": [run(50, 60, 70), run(70, 90, 72)], "auto": [run(30, 50, 71), run(30, 50, 69)]}
    found = benchmark.compared(runs, [run(100, 120, 70), run(110, 130, 70)])
    assert (found["ratio"], found["ratio_wall"]) == (2.0, 1.5)
    assert (found["ratio_float32"], found["ratio_float32_wall"]) == (3.5, 2.5)
    assert found["linear"] == {"dense": [70, 72], "auto": [71, 69]}
    assert "knn" not in found
