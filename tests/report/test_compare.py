# SPDX-License-Identifier: MIT
"""Many runs on one page: what differs, the table, the plots of cost."""

import html as html_text
import itertools
import json
import re

import numpy as np
import pytest

from solo.files.results import add_evaluations, keep_results
from sparse_ext.report import RunLog
from sparse_ext.report.__main__ import main
from sparse_ext.report.differences import differences
from sparse_ext.report.run_labels import labelled, styles
from sparse_ext.report.several_runs import page_for
from sparse_ext.report.trade_off import front, pareto
from tests.report.browser import BROWSER, _run, layout
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
    lower = {"name": "gmp", "final": 0.8}
    one = run(tmp_path / "x" / "0", "one", 70.5, 1234.4, seed=1, sparse=lower)
    two = run(tmp_path / "y" / "0", "two", 60.25, 99.0, seed=2, sparse=SPARSE)
    assert main([str(one), str(two), "--compare", "--no-timing"]) == 0
    page = tmp_path / "comparison.html"
    assert capsys.readouterr().out.strip() == str(page)
    heads, rows = table(page.read_text())
    # no checkpoints here, so no MACs and MB
    assert heads[:5] == ["run", "accuracy", "kNN", "sparsity", "seconds"]
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
        "augmentations": ["1 key", "–", "–", "–"],
        "sparse.final": ["–", "–", "0.9", "0.8"],
    }


def test_keys_of_one_method_do_not_differ_from_another_s():
    csi = {"mode": "normalized", "tau": 0.1}
    runs = [
        {"sparse": {"name": "gmp", "final": 0.9}, "opt": {"kwargs": {}}},
        {"sparse": {"name": "synccp", "final": 0.9, "csi": csi, "sync": True}},
        {"sparse": {"name": "synccp", "final": 0.9, "csi": {**csi, "tau": 0.2}, "sync": True}},
    ]
    assert differences(runs) == {
        "sparse": ["gmp", "synccp", "synccp"],
        "sparse.csi.tau": ["–", "0.1", "0.2"],
        "opt": ["1 key", "–", "–"],
    }


def test_values_are_written_as_one_types_them_and_short():
    view = {"crop_size": 32, "blur": {"prob": 0.5}}
    runs = [
        {"a": None, "b": True, "c": [1, 0.25], "d": "x" * 300, "views": [view, view]},
        {"a": 1, "b": False, "c": [1], "d": "y", "views": [{**view, "crop_size": 16}]},
        {"a": 1, "b": False, "c": [1], "d": "y", "views": None},
    ]
    found = differences(runs)
    assert found["a"] == ["null", "1", "1"]
    assert found["b"] == ["true", "false", "false"]
    assert found["c"] == ["[1,0.25]", "[1]", "[1]"]
    assert len(found["d"][0]) == 61
    assert found["views"] == ["2 keys", "1 key", "null"]
    assert "{" not in str([*found.values()])


def test_equal_names_get_the_parts_of_folders_that_differ(tmp_path):
    folders = [sparse_run(tmp_path / part / "byol" / "0") for part in ("a", "b")]
    logs = [RunLog(folder) for folder in folders]
    assert list(labelled(logs)) == ["a", "b"]
    other = run(tmp_path / "c" / "byol" / "0", "other", 1.0, 1.0)
    assert list(labelled([*logs, RunLog(other)])) == ["toy <run> (a)", "toy <run> (b)", "other"]
    assert page_for(folders) == tmp_path / "comparison.html"


def test_the_front_by_brute_force():
    generator = np.random.default_rng(1)
    points = [tuple(map(float, p)) for p in generator.integers(0, 8, (30, 2))]
    wanted = {
        (x, y)
        for x, y in points
        if not any((u <= x and v >= y) and (u, v) != (x, y) for u, v in points)
    }
    assert set(front(points)) == wanted
    assert front(points) == sorted(wanted)
    figure = pareto({"a": (1.0, 50.0), "b": (2.0, 40.0)}, "cost", "accuracy")
    dots = [tuple(dot.get_offsets()[0]) for dot in figure.axes[0].collections]
    assert dots == [(1.0, 50.0), (2.0, 40.0)]
    assert [text.get_text() for text in figure.axes[0].texts] == ["a", "b"]


def test_names_lie_on_no_name_and_no_dot():
    points = {f"a run with a name {i}": (1.0 + 0.02 * (i % 3), 50.0 + i) for i in range(6)}
    figure = pareto(points, "cost", "accuracy")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for box, (x, y) in itertools.product(boxes, axes.transData.transform([*points.values()])):
        assert not box.contains(x, y)


def test_another_protocol_is_hollow_and_beats_nobody():
    points = {"a": (1.0, 50.0), "b": (2.0, 60.0), "linear": (0.5, 90.0)}
    axes = pareto(points, "cost", "accuracy", styles(list(points)), {"linear"}, False).axes[0]
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
    white = [dot.get_facecolor()[0].tolist() == [1, 1, 1, 1] for dot in axes.collections]
    assert white == [False, False, True]


def test_eighteen_runs_look_different():
    looks = styles([str(i) for i in range(18)])
    assert len({str(look) for look in looks.values()}) == 18


def test_many_runs_share_one_legend(tmp_path):
    folders = [str(run(tmp_path / f"r{i}" / "0", "one", 50.0 + i, 10.0, seed=i)) for i in range(5)]
    assert main([*folders, "--compare", "--no-timing"]) == 0
    page = (tmp_path / "comparison.html").read_text()
    assert page.count('class="swatch"') == 10  # in the table, and in the legend of the curves
    assert main([*folders[:3], "--compare", str(tmp_path / "few.html"), "--no-timing"]) == 0
    assert 'class="swatch"' not in (tmp_path / "few.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium here")
@pytest.mark.parametrize("width", [1400, 800])
def test_nothing_is_wider_than_the_window(tmp_path, width):
    views = [{"crop_size": 32, "rrc": {"enabled": True, "crop_min_scale": 0.2}}]
    folders = [
        str(run(tmp_path / f"a-name-of-a-job-{i}" / "0", "one", 50.0 + i, 1e4, seed=i, **more))
        for i, more in enumerate([{"augmentations": views}, {"sparse": SPARSE}, {}, {}, {}, {}])
    ]
    assert main([*folders, "--compare", "--no-timing"]) == 0
    scrolling, wide, _ = layout(tmp_path / "comparison.html", width)
    assert (scrolling, wide <= width) == ([], True)


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium here")
@pytest.mark.parametrize(
    ("head", "wanted"), [(1, ["9.00", "60.25", "70.50"]), (4, ["5", "99", "1,234"])]
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
