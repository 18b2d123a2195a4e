# SPDX-License-Identifier: MIT
"""Many runs on one page: what differs, the table, the plots of cost."""

import html as html_text
import itertools
import json
import re

import numpy as np
import pytest

from solo.files.results import add_evaluations, keep_results
from sparse_ext.report import RunLog, plots
from sparse_ext.report.__main__ import main
from sparse_ext.report.differences import differences
from sparse_ext.report.several_runs import labelled, page_for
from tests.report.browser import BROWSER, _run
from tests.report.test_report import sparse_run

pytestmark = pytest.mark.unit
SPARSE = {"name": "synccp", "final": 0.9}


def table(page):
    """Heads and rows of the first table of a page, as text."""
    part = re.search(r'<table class="?sortable.*?</table>', page, re.DOTALL)[0]
    clean = [
        [
            html_text.unescape(re.sub(r"<[^>]*>", "", cell)).strip()
            for cell in re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", part, re.DOTALL)
    ]
    return clean[0], clean[1:]


def run(folder, name, accuracy, seconds, **args):
    sparse_run(folder)
    stored = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps({**stored, "name": name, **args}))
    keep_results(folder, {"seconds": seconds})
    entry = {"encoder": "online", "acc1": accuracy}
    add_evaluations(folder, "linear", [entry], ["acc1"])
    add_evaluations(folder, "knn", [{**entry, "k": 20, "acc1": accuracy / 2}], ["acc1"])
    return folder


def test_the_table_has_what_each_run_found(tmp_path, capsys):
    one = run(tmp_path / "x" / "0", "one", 70.5, 1234.4, seed=1)
    two = run(tmp_path / "y" / "0", "two", 60.25, 99.0, seed=2, sparse=SPARSE)
    assert main([str(one), str(two), "--compare", "--no-timing"]) == 0
    page = tmp_path / "comparison.html"
    assert capsys.readouterr().out.strip() == str(page)
    heads, rows = table(page.read_text())
    assert heads[:8] == [
        *("run", "accuracy", "kNN", "sparsity", "MACs", "MB", "ms per image", "seconds")
    ]
    found = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    assert found["one"]["accuracy"] == "70.50"
    assert found["two"]["kNN"] == "30.12"
    assert found["one"]["sparsity"] == "80.0%"
    assert found["one"]["seconds"] == "1,234"
    assert (found["one"]["seed"], found["two"]["seed"]) == ("1", "2")
    assert found["two"]["sparse.final"] == "0.9"
    assert 'href="x/0"' in page.read_text()


def test_what_differs():
    base = {"method": "byol", "optimizer": {"lr": 0.1, "lr_as_written": 1.0}, "name": "a"}
    runs = [
        {**base, "augmentations": [{"crop_size": 32, "blur": {"prob": 0.5}}]},
        {**base, "name": "b", "optimizer": {"lr": 0.2, "lr_as_written": 2.0}},
        {**base, "sparse": {"name": "gmp", "final": 0.9, "initial": 0.0}},
        {**base, "sparse": {"name": "gmp", "final": 0.8, "initial": 0.0}, "wandb": {"x": 1}},
    ]
    found = differences(runs)
    assert found == {
        "sparse": ["dense", "dense", "gmp", "gmp"],
        "optimizer.lr": ["0.1", "0.2", "0.1", "0.1"],
        "augmentations.0.crop_size": ["32", "–", "–", "–"],
        "augmentations.0.blur.prob": ["0.5", "–", "–", "–"],
        "sparse.final": ["–", "–", "0.9", "0.8"],
    }


def test_equal_names_get_the_parts_of_folders_that_differ(tmp_path):
    folders = [sparse_run(tmp_path / part / "byol" / "0") for part in ("a", "b")]
    assert list(labelled([RunLog(folder) for folder in folders])) == [
        "toy <run> (a)",
        "toy <run> (b)",
    ]
    assert page_for(folders) == tmp_path / "comparison.html"


def test_the_front_by_brute_force():
    generator = np.random.default_rng(1)
    points = [tuple(map(float, p)) for p in generator.integers(0, 8, (30, 2))]
    wanted = {
        (x, y)
        for x, y in points
        if not any((u <= x and v >= y) and (u, v) != (x, y) for u, v in points)
    }
    assert set(plots.front(points)) == wanted
    assert plots.front(points) == sorted(wanted)
    figure = plots.pareto({"a": (1.0, 50.0), "b": (2.0, 40.0)}, "cost", "accuracy")
    dots = [tuple(dot.get_offsets()[0]) for dot in figure.axes[0].collections]
    assert dots == [(1.0, 50.0), (2.0, 40.0)]
    assert [text.get_text() for text in figure.axes[0].texts] == ["a", "b"]


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium here")
@pytest.mark.parametrize(
    ("head", "wanted"), [(1, ["9.00", "60.25", "70.50"]), (7, ["5", "99", "1,234"])]
)
def test_a_click_on_a_head_sorts(tmp_path, head, wanted):
    folders = [
        run(tmp_path / name / "0", name, accuracy, seconds)
        for name, accuracy, seconds in (("a", 70.5, 1234.4), ("b", 9.0, 99.0), ("c", 60.25, 5.0))
    ]
    page = tmp_path / "page.html"
    assert main([*map(str, folders), "--compare", str(page), "--no-timing"]) == 0
    for clicks, order in ((1, wanted), (2, wanted[::-1])):
        click = f"document.querySelectorAll('table.sortable th')[{head}].click();" * clicks
        clicked = page.with_name("clicked.html")
        clicked.write_text(page.read_text().replace("</body>", f"<script>{click}</script></body>"))
        _, rows = table(_run(clicked, 1400, 900, "--dump-dom"))
        assert [row[head] for row in rows] == order


def test_times_are_of_the_encoder(monkeypatch):
    import torch

    from sparse_ext.report import timed

    clock = itertools.count()
    monkeypatch.setattr(timed.time, "process_time", lambda: float(next(clock)))
    seen = []

    class Encoder(torch.nn.Module):
        def forward(self, x):
            seen.append(tuple(x.shape))
            return x

    found = timed.milliseconds({"a": (Encoder(), 32), "b": (Encoder(), 16)})
    assert found == {"a": 1e3 / timed.BATCH, "b": 1e3 / timed.BATCH}
    assert set(seen) == {(timed.BATCH, 3, 32, 32), (timed.BATCH, 3, 16, 16)}
