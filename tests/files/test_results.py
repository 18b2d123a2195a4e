# SPDX-License-Identifier: MIT
"""results.json: the run itself, and its evaluations, each setting once."""

import json
import threading

import pytest

from solo.errors import DataError, OutputError
from solo.files.results import FILE, add_evaluations, keep_results, read_results

pytestmark = pytest.mark.unit


def test_a_run_and_its_evaluations(tmp_path):
    assert read_results(tmp_path) == {}
    keep_results(tmp_path, {"epochs": 1, "metrics": {"val_acc1": 10.0}})
    keep_results(tmp_path, {"epochs": 2, "metrics": {"val_acc1": 20.0}})
    add_evaluations(tmp_path, "knn", [{"k": 1, "acc1": 5.0}, {"k": 20, "acc1": 6.0}], ["acc1"])
    add_evaluations(tmp_path, "knn", [{"k": 20, "acc1": 7.0}], ["acc1"])
    assert read_results(tmp_path) == {
        "run": {"epochs": 2, "metrics": {"val_acc1": 20.0}},
        "knn": [{"k": 1, "acc1": 5.0}, {"k": 20, "acc1": 7.0}],
    }
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_paths_are_the_same_setting_again(tmp_path):
    for acc in (1.0, 2.0):
        add_evaluations(tmp_path, "knn", [{"path": tmp_path, "acc1": acc}], ["acc1"])
    assert read_results(tmp_path)["knn"] == [{"path": str(tmp_path), "acc1": 2.0}]


def test_programs_at_the_same_time_lose_nothing(tmp_path):
    def evaluate(k):
        add_evaluations(tmp_path, "knn", [{"k": k, "acc1": k}], ["acc1"])

    threads = [threading.Thread(target=evaluate, args=(k,)) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry["k"] for entry in read_results(tmp_path)["knn"]) == list(range(12))


def test_damage_and_refusal_are_named(tmp_path):
    (tmp_path / FILE).write_text("{")
    with pytest.raises(DataError, match=r"results\.json' is damaged .* delete it"):
        read_results(tmp_path)
    keep_results(tmp_path, {"epochs": 1})  # of no use to anybody, so it is written anew
    assert json.loads((tmp_path / FILE).read_text()) == {"run": {"epochs": 1}}
    (tmp_path / "file").write_text("")
    with pytest.raises((OutputError, OSError)):
        keep_results(tmp_path / "file", {})
