# SPDX-License-Identifier: MIT
"""Curves from run folders: averages against numpy, files, mistakes; the commands."""

import csv
import json
import re

import numpy as np
import pytest

from solo.errors import DataError
from sparse_ext.tickets import curves
from sparse_ext.tickets.__main__ import main
from sparse_ext.tickets.curves import average, draw, figures, find_runs

pytestmark = pytest.mark.unit


def run_folder(root, curve, seed, values, figure="fig", density=0.8):
    folder = root / f"{figure}-{curve}-{seed}"
    for level, value in enumerate(values):
        path = folder / f"level_{level:02d}"
        path.mkdir(parents=True)
        record = {"density": density**level, "metrics": {"val_acc1": value}, "files": {}}
        (path / "done.json").write_text(json.dumps(record))
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"figure": figure, "curve": curve, "seed": seed}
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


def test_mean_and_standard_error_against_numpy(tmp_path):
    values = np.random.default_rng(0).uniform(50, 90, (3, 2))
    for seed, row in enumerate(values):
        run_folder(tmp_path, "a", seed, row.tolist())
    points = average(find_runs([tmp_path], "val_acc1"))
    for level, point in enumerate(points):
        assert point.remaining == pytest.approx(0.8**level)
        assert point.mean == pytest.approx(values[:, level].mean())
        assert point.error == pytest.approx(values[:, level].std(ddof=1) / np.sqrt(3))
        assert point.seeds == 3


def test_a_level_counts_the_seeds_that_have_it(tmp_path):
    run_folder(tmp_path, "a", 1, [60.0, 50.0])
    run_folder(tmp_path, "a", 2, [70.0])
    points = average(find_runs([tmp_path], "val_acc1"))
    assert [(p.mean, p.seeds) for p in points] == [(65.0, 2), (50.0, 1)]
    assert points[1].error == 0


def test_one_plot_and_table_per_figure(tmp_path):
    run_folder(tmp_path, "Labels", 1, [90.0, 80.0])
    run_folder(tmp_path, "Random", 1, [90.0, 70.0])
    run_folder(tmp_path, "Other", 1, [50.0], figure="second")
    files = draw([tmp_path], tmp_path / "out")
    assert [f.name for f in files] == ["fig.svg", "fig.csv", "second.svg", "second.csv"]
    with open(files[1], newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["curve", "remaining", "val_acc1", "standard_error", "seeds"]
    assert rows[2] == ["Labels", "0.8", "80.0", "0.0", "1"]
    svg = files[0].read_text()
    assert svg.startswith("<?xml")
    again = draw([tmp_path], tmp_path / "again")[0].read_text()
    assert re.sub(r"\s", "", again) == re.sub(r"\s", "", svg)  # the same runs, the same file


def test_ticks_reach_the_last_level():
    assert curves._ticks(0.03) == [1.0, 0.5, 0.2, 0.1, 0.05, 0.02]


def test_mistakes(tmp_path):
    with pytest.raises(DataError, match="no run folder with a finished level"):
        find_runs([tmp_path], "val_acc1")
    run_folder(tmp_path, "a", 1, [60.0])
    with pytest.raises(DataError, match=r"no metric 'val_ac1'.*Did you mean 'val_acc1'"):
        find_runs([tmp_path], "val_ac1")
    run_folder(tmp_path / "copy", "a", 1, [60.0])
    with pytest.raises(DataError, match="several runs of 'a' with one seed"):
        figures(find_runs([tmp_path], "val_acc1"))


def test_commands(finished, tmp_path, capsys):
    main(["curves", str(finished.folder), "--output", str(tmp_path)])
    assert (tmp_path / "tickets.svg").is_file()
    main(["natural", str(finished.folder), "--level", "2"])
    out = capsys.readouterr().out
    share = float(re.search(r"all +([\d.]+)%", out)[1])
    assert share == pytest.approx(100 * (1 - finished.level(2).masks().density), abs=0.1)
    with pytest.raises(SystemExit) as stop:
        main(["natural", str(tmp_path)])
    assert stop.value.code == 2
    assert "there is no such file" in capsys.readouterr().err
