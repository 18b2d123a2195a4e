# SPDX-License-Identifier: MIT
"""Reports: every number on the page comes from the run's files; any run folder will do."""

import base64
import csv
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from solo.errors import DataError
from sparse_ext.report import Page, RunLog, plots, write_report
from sparse_ext.report.__main__ import main

pytestmark = pytest.mark.unit

LAYERS = {"layer1": [0.9, 0.9, 0.5, 0.4], "layer2": [0.5, 0.5, 0.3, 0.1]}


def write_metrics(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder


def sparse_run(folder, epochs=4):
    """What four epochs of ten steps of a SyncCP run leave; the ramp starts after the second."""
    rows = []
    for epoch in range(epochs):
        step = 10 * epoch + 9
        rows.append({"epoch": epoch, "step": step - 4, "train_nce_loss_step": 9.0, "tau": 0.99})
        rows.append({"epoch": epoch, "step": step, "val_acc1": 20.0 + epoch, "val_loss": 2.0})
        row = {
            **{"epoch": epoch, "step": step, "train_nce_loss_epoch": 4.0 - epoch},
            **{"train_acc1_epoch": 15.0 + epoch, "sparse/triggered": float(epoch >= 1)},
            **{"sparse/online_sparsity": (0.3, 0.3, 0.6, 0.8)[epoch]},
            **{"sparse/momentum_sparsity": (0.0, 0.0, 0.3, 0.5)[epoch], "sparse/gap": 0.3},
            **{"sparse/mask_flips": 0.1, "sparse/drop_fraction": 0.5},
            **{"sparse/training_cost_A": 0.8 - 0.1 * epoch + 0.11 * (epoch == 3)},
            **{"sparse/training_cost_B": 0.72, "sparse/dead_filters": 0.01 * epoch},
            **{"sparse/oscillation": 0.2, "sparse/macs_dense": 4e6, "sparse/kernel_layers": 5.0},
            **{"sparse/macs_effective": (3e6, 3e6, 2e6, 1e6)[epoch]},
            **{"sparse/seconds_per_step": (0.6, 0.6, 0.5, 0.3)[epoch]},
            **{f"sparse/layer_oscillation/{name}": 0.3 for name in LAYERS},
            **{f"sparse/layer_density/{name}": d[epoch] for name, d in LAYERS.items()},
        }
        if epoch < 2:
            row["sparse/inconsistency"] = 0.33 - 0.02 * epoch
            row |= {f"sparse/layer_inconsistency/{name}": 0.4 for name in LAYERS}
        rows.append(row)
    write_metrics(folder, rows)
    args = {
        **{"name": "toy <run>", "method": "mocov2plus", "method_kwargs": {}, "max_epochs": epochs},
        **{"data": {"dataset": "digits"}, "sparse": {"name": "synccp"}, "momentum": {}},
        **{"backbone": {"name": "resnet18", "kwargs": {"width": 8}}},
    }
    (folder / "args.json").write_text(json.dumps(args))
    return folder


def figures(html):
    """Title -> text of the SVG, of every figure on a page."""
    found = re.findall(r'<h3>([^<]*)</h3><img src="data:image/svg\+xml;base64,([^"]*)"', html)
    return {title: base64.b64decode(data).decode() for title, data in found}


def test_the_effective_rank_stands_beside_the_sparsity(tmp_path):
    folder = sparse_run(tmp_path / "run")
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    ends = [row for row in rows if row["sparse/online_sparsity"]]
    for rank, row in zip((20.0, 18.0, 12.0, 9.5), ends, strict=True):
        row |= {"quality/backbone_rankme": rank, "quality/samples": 4096.0}
    write_metrics(folder, rows)
    page = write_report(folder).read_text()
    titles = list(figures(page))
    assert titles.index("Effective rank") == titles.index("Sparsity") + 1
    assert "over 4,096 rows" in page
    assert "ramp starts" in figures(page)["Effective rank"]
    assert "Effective rank" not in figures(write_report(sparse_run(tmp_path / "b")).read_text())


def test_series_prefer_epoch_means_and_know_their_time(tmp_path):
    log = RunLog(sparse_run(tmp_path))
    assert log.steps_per_epoch == 10
    assert log.series("train_nce_loss") == ([1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0])
    assert log.series("tau").epochs == [0.6, 1.6, 2.6, 3.6]
    assert log.series("val_acc1").last == 23.0
    assert log.group("sparse/layer_density/")["layer2"].values == LAYERS["layer2"]
    assert "train_nce_loss" in log
    assert "train_nce_loss_step" not in log.names
    assert log.trigger_epoch == 2


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    rows = [{"epoch": e, "step": e, "val_loss": v} for e, v in enumerate(("1.5", "nan", "", "x"))]
    log = RunLog(write_metrics(tmp_path, rows))
    assert log.series("val_loss") == ([1], [1.5])
    assert log.trigger_epoch is None
    with pytest.raises(DataError, match="Did you mean 'val_loss'"):
        log.series("val_los")


def test_a_sparse_run_shows_every_aspect_in_one_file(tmp_path):
    path = write_report(sparse_run(tmp_path))
    assert path == tmp_path / "report.html"
    html = path.read_text()
    drawn = figures(html)
    assert set(drawn) == {
        *("Self-supervised loss", "Classification loss", "Accuracy", "Sparsity"),
        *("Inconsistency and the start of the ramp", "Mask changes", "Momentum coefficient"),
        *("Density per layer", "Inconsistency per layer", "Architecture oscillation per layer"),
        *("Architecture oscillation", "Dead filters", "Effective MACs", "Training cost so far"),
        "Seconds per training step",
    }
    for svg in drawn.values():
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert not re.search(r'(?:src|href)="(?!data:)', html)  # nothing is fetched
    assert "<script" not in html
    assert "toy &lt;run&gt;" in html
    assert "online 30% to 80%, momentum 0% to 50%" in html
    assert "4 of 4" in html


def test_figures_carry_the_logged_values(tmp_path, monkeypatch):
    from sparse_ext.report import page as page_module

    drawn = {}
    monkeypatch.setattr(
        page_module, "data_uri", lambda figure: drawn.setdefault(id(figure), figure) and ""
    )
    write_report(sparse_run(tmp_path))
    lines = {  # the first of equal names
        line.get_label(): line
        for figure in reversed(drawn.values())
        for axes in figure.axes
        for line in axes.get_lines()
    }
    assert list(lines["online encoder"].get_ydata()) == pytest.approx([30, 30, 60, 80])
    assert list(lines["momentum encoder"].get_ydata()) == pytest.approx([0, 0, 30, 50])
    assert list(lines["I"].get_ydata()) == pytest.approx([0.33, 0.31])
    assert set(lines["ramp starts (epoch 2)"].get_xdata()) == {2}
    assert list(lines["all layers"].get_ydata()) == pytest.approx([0.2] * 4)
    assert list(lines["all prunable layers"].get_ydata()) == pytest.approx([0, 1, 2, 3])
    assert list(lines["convention A"].get_ydata()) == pytest.approx([0.8, 0.7, 0.6, 0.61])
    assert list(lines["dense"].get_ydata()) == pytest.approx([4] * 4)
    assert lines["lowest possible (the gap)"].get_ydata()[0] == pytest.approx(0.3)
    assert lines["unrelated encoders"].get_ydata()[0] == pytest.approx(0.8 * 0.5 + 0.5 * 0.2)


def test_seconds_are_measured_and_stand_beside_what_macs_would_have_them(tmp_path, monkeypatch):
    drawn = {}
    real = plots.lines

    def lines(series, ylabel, *rest, **options):
        drawn[ylabel] = {label: list(s.values) for label, s in series.items()}
        return real(series, ylabel, *rest, **options)

    monkeypatch.setattr(plots, "lines", lines)
    html = write_report(sparse_run(tmp_path / "run")).read_text()
    found = drawn["seconds"]
    assert found["measured"] == [0.6, 0.6, 0.5, 0.3]
    assert found["in proportion to effective MACs"] == pytest.approx([0.6, 0.6, 0.4, 0.2])
    assert "5 layers of the online encoder left out pruned" in html
    assert html.index("Effective MACs<") < html.index("Seconds per training step<")


def test_a_linear_run_and_a_run_without_arguments(tmp_path):
    rows = [
        {"epoch": 0, "step": 4, "train_loss_epoch": 2.0, "train_acc1_epoch": 30.0},
        {"epoch": 0, "step": 4, "val_loss": 1.9, "val_acc1": 33.0},
    ]
    html = write_report(write_metrics(tmp_path, rows)).read_text()
    assert set(figures(html)) == {"Classification loss", "Accuracy"}
    assert "Linear evaluation." in html


def test_cost_and_training_cost_come_from_the_checkpoint(tmp_path):
    import torch
    from omegaconf import OmegaConf

    from solo.backbones import build_encoder
    from sparse_ext.report.one_run import checkpoint_costs, training_cost

    sparse_run(tmp_path)
    args = json.loads((tmp_path / "args.json").read_text())
    from sparse_ext.extension import register

    register()
    backbone = build_encoder(OmegaConf.create(args))
    backbone.layer4[1].conv2.mask.view(-1)[::2] = False
    backbone.layer4[1].conv2.apply_mask()
    state = backbone.state_dict()
    both = {f"{p}.{k}": v for p in ("backbone", "momentum_backbone") for k, v in state.items()}
    torch.save({"state_dict": both}, tmp_path / "toy-0-ep=3.ckpt")
    html = write_report(tmp_path).read_text()
    log = RunLog(tmp_path)
    tables = checkpoint_costs(log)
    assert set(tables) == {"online", "momentum"}
    assert f"{tables['online'].macs_dense:,}" in html
    assert "Effective MACs are modelled" in html
    assert training_cost(log) == {"A": 0.61, "B": 0.72}  # what the run logged last
    assert "<td>0.720</td><td>2 f_online + 1 + f_momentum over 4" in html


def test_a_checkpoint_that_does_not_fit_is_said_on_the_page(tmp_path):
    sparse_run(tmp_path)
    (tmp_path / "toy-0-ep=3.ckpt").write_bytes(b"no checkpoint")
    assert "Not measured" in write_report(tmp_path).read_text()


def test_tables_escape_and_mark_rows():
    page = Page("t")
    page.table("x", ("a", "b"), [("<1>", "2"), ("3", "4")], strong=1)
    html = page.html()
    assert "<td>&lt;1&gt;</td>" in html
    assert "<tr class=strong><td>3</td>" in html


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "no such run folder"),
        (lambda folder: folder.mkdir(), "no metrics.csv"),
        (lambda folder: write_metrics(folder / "deep" / "0", [{"a": 1}]), r"Did you mean .*deep/0"),
        (lambda folder: write_metrics(folder, []), "no metrics yet"),
        (
            lambda folder: write_metrics(folder, [{"a": 1}]).joinpath("args.json").write_text("{"),
            "no JSON",
        ),
    ],
)
def test_a_folder_without_a_run_is_a_named_error(tmp_path, prepare, message, capsys):
    folder = tmp_path / "run"
    prepare(folder)
    assert main([str(folder)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.rglob("report.html"))


def test_command_prints_where_the_report_is(tmp_path, capsys):
    assert main([str(sparse_run(tmp_path)), "--output", str(tmp_path / "o" / "r.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "o" / "r.html")
    assert (tmp_path / "o" / "r.html").is_file()


def test_several_runs_in_the_same_figures(tmp_path, capsys, monkeypatch):
    from sparse_ext.report import page as page_module

    drawn = []
    monkeypatch.setattr(page_module, "data_uri", lambda figure: drawn.append(figure) or "")
    runs = [sparse_run(tmp_path / name, epochs) for name, epochs in (("a", 4), ("b", 3))]
    dense = write_metrics(tmp_path / "dense", [{"epoch": 0, "step": 9, "val_acc1": 50.0}])
    (dense / "args.json").write_text(json.dumps({"name": "dense"}))
    out = tmp_path / "all.html"
    assert main([*map(str, [*runs, dense]), "--compare", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    html = out.read_text()
    titles = re.findall("<h3>([^<]*)</h3>", html)
    assert {"Online accuracy", "Gap between the encoders", "Inconsistency"} <= set(titles)
    figure = drawn[titles.index("Online accuracy") - titles.index("Runs") - 1]
    accuracy = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].get_lines()}
    assert accuracy["dense"] == [50.0]
    assert accuracy["toy <run> (b)"] == [20.0, 21.0, 22.0]
    sparsity = drawn[titles.index("Sparsity of the online encoder") - 1].axes[0].get_lines()
    assert [len(line.get_ydata()) for line in sparsity] == [4, 3]  # the dense run has none


def test_a_comparison_needs_two_runs(tmp_path):
    with pytest.raises(SystemExit):
        main([str(sparse_run(tmp_path)), "--compare", "x.html"])


def test_time_of_a_step_of_a_profiled_run(tmp_path):
    folder = sparse_run(tmp_path / "run")
    assert "Time of a step" not in write_report(folder).read_text()
    stored = {"steps": 4, "images_per_step": 8, "seconds": {"forward": 0.06, "data wait": 0.02}}
    (folder / "profile.json").write_text(json.dumps(stored))
    html = write_report(folder).read_text()
    assert "Time of a step" in html
    for text in ("forward", "15.000", "75.0%", "data wait", "5.000", "20.000", "400 images/s"):
        assert text in html
    for broken in ("{", '{"steps": 0, "images_per_step": 1, "seconds": {"forward": 1}}', "[]"):
        (folder / "profile.json").write_text(broken)
        with pytest.raises(DataError, match=r"profile\.json' is damaged"):
            write_report(folder)
