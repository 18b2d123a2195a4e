# SPDX-License-Identifier: MIT
"""The first card of a report, the dense twin, and what a page must not say of a run."""

import json
import re

import matplotlib.figure
import numpy as np
import pytest

from solo.files.results import add_evaluations, keep_results
from solo.programs.linear import linear
from solo.programs.pretrain import pretrain
from sparse_ext import extension
from sparse_ext.cost.of_checkpoint import measure
from sparse_ext.report import RunLog, plots, write_report
from sparse_ext.report.mask_pictures import mask_codes
from sparse_ext.report.measured import measure_run
from sparse_ext.report.neighbours import nearest
from sparse_ext.report.one_run import find_twin
from tests.programs.tiny import LINEAR, PRETRAIN, config
from tests.report.test_report import figures, sparse_run, write_metrics

pytestmark = pytest.mark.unit
SPARSE = {"name": "synccp", "final": 0.8, "update_period": 1}


def card(html):
    """Name -> (value, note) of the verdict."""
    found = re.findall(r'class="name">([^<]*)</span><b>([^<]*)</b><span>([^<]*)</span>', html)
    return {name: (value, note) for name, value, note in found}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a sparse run, its dense twin and a linear evaluation of the sparse one."""
    import os

    extension.register()
    folder, before = tmp_path_factory.mktemp("runs"), os.getcwd()
    os.chdir(folder)
    try:
        pretrain(config(PRETRAIN, max_epochs=2))
        pretrain(config(PRETRAIN, max_epochs=2, sparse=SPARSE, limit_train_batches=6))
        sparse = folder / "trained_models" / "mocov2plus" / "1"
        linear(config(LINEAR, pretrained_feature_extractor=str(sparse)))
    finally:
        os.chdir(before)
    return sparse, sparse.parent / "0", folder / "trained_models" / "linear" / "0"


def test_the_card_has_the_figures_of_the_run(runs):
    sparse, _, evaluated = runs
    shown = card(write_report(sparse).read_text())
    table = measure(sparse)
    accuracy = RunLog(evaluated).series("val_acc1").last
    assert shown["Accuracy"] == (f"{accuracy:.1f}%", "linear evaluation, last epoch")
    assert shown["Online sparsity"][0] == f"{100 * table.prunable.sparsity:.1f}%"
    momentum = measure(sparse, "momentum").prunable.sparsity
    assert shown["Momentum sparsity"][0] == f"{100 * momentum:.1f}%"
    macs, note = shown["MACs per image"]
    assert float(macs.split()[0]) == pytest.approx(table.macs_effective / 1e3, rel=5e-3)
    assert f"({100 * table.mac_ratio:.0f}%) at 32x32; counted, not timed" in note
    assert table.input_shape == (3, 32, 32)
    megabytes = float(shown["Encoder"][0].removesuffix(" MB"))
    assert 4e-6 * table.parameters_kept < megabytes < 4e-6 * table.parameters
    assert shown["Training time"][0].endswith(" s")


def test_kNN_of_the_program_comes_before_that_of_training(tmp_path):
    folder = sparse_run(tmp_path)
    assert "kNN" not in card(write_report(folder).read_text())
    entry = {"encoder": "online", "acc1": 61.23}
    add_evaluations(folder, "knn", [{**entry, "k": 20}, {**entry, "k": 1, "acc1": 5.0}], ["acc1"])
    keep_results(folder, {"seconds": 200.0, "images_per_second": 1234.0})
    shown = card(write_report(folder).read_text())
    assert shown["kNN"] == ("61.2%", "main_knn.py, k = 20")
    assert shown["Training time"] == ("3 min 20 s", "1,234 images/s")
    assert shown["Online sparsity"][0] == "80.0%"  # as logged: there is no checkpoint


def test_an_evaluation_of_a_sparse_encoder_is_not_called_dense(runs):
    *_, evaluated = runs
    html = write_report(evaluated).read_text()
    assert card(html)["Sparsity"][0] == f"{100 * measure(runs[0]).prunable.sparsity:.1f}%"
    assert "<dd>dense" not in html
    assert "<b>dense" not in html
    assert "<dt>Sparsity</dt><dd>80.0%, fixed</dd>" in html


@pytest.mark.parametrize(("method", "momentum"), [("simsiam", False), ("byol", True)])
def test_an_encoder_that_a_method_does_not_have_is_not_shown(tmp_path, method, momentum):
    rows = [
        {"epoch": e, "step": 10 * e + 9, "train_neg_cos_sim_epoch": -0.5, "train_z_std_epoch": 0.1}
        | {"sparse/online_sparsity": 0.5, "sparse/mask_flips": 0.1}
        for e in range(2)
    ]
    write_metrics(tmp_path, rows)
    args = {"name": "x", "method": method, "method_kwargs": {"proj_output_dim": 16}}
    (tmp_path / "args.json").write_text(json.dumps({**args, "sparse": {"name": "synccp"}}))
    html = write_report(tmp_path).read_text()
    assert ("momentum" in html.lower().replace("momentum coefficient", "")) is momentum
    assert {"Self-supervised loss", "Spread of the projections"} <= set(figures(html))


def test_the_dense_twin_is_found_and_drawn(runs, tmp_path, monkeypatch):
    sparse, dense, _ = runs
    assert find_twin(RunLog(dense)) is None  # a dense run needs none
    assert find_twin(RunLog(sparse)).folder.name == "0"
    args = json.loads((dense / "args.json").read_text())
    other = {**args, "optimizer": {**args["optimizer"], "lr": 77.0}}
    (dense / "args.json").write_text(json.dumps(other))
    assert find_twin(RunLog(sparse)) is None
    (dense / "args.json").write_text(json.dumps(args))
    drawn, real = {}, plots.lines

    def spy(series, label, *rest, **options):
        drawn[label] = dict(series)
        return real(series, label, *rest, **options)

    monkeypatch.setattr(plots, "lines", spy)
    write_report(sparse, tmp_path / "r.html", neighbours=0)
    twin = RunLog(dense)
    assert drawn["loss"]["dense twin: nce loss"] == twin.series("train_nce_loss")
    assert drawn["top-1 accuracy (%)"]["dense twin: linear, validation images"] == twin.series(
        "val_acc1"
    )


def test_mask_pictures_are_the_masks(runs):
    measured = measure_run(RunLog(runs[0]))
    codes, shares = mask_codes(measured)
    assert 2 <= len(codes) <= 6
    name = next(iter(codes))
    kept = [
        dict(encoder.named_modules())[name].mask.numpy() for encoder in measured.encoders.values()
    ]
    assert shares[name] == pytest.approx([mask.mean() for mask in kept])
    out, into, height, width = np.argwhere(kept[0] != kept[1])[0]
    code = codes[name][out * kept[0].shape[2] + height, into * kept[0].shape[3] + width]
    assert code == (1 if kept[0][out, into, height, width] else 2)
    assert mask_codes(measure_run(RunLog(runs[1]))) == ({}, {})  # nothing is masked


def test_nearest_neighbours_by_brute_force():
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(40, 5)), generator.integers(0, 4, 40)
    queries, found = nearest(x, y)
    assert len(set(queries)) == 6
    assert {int(y[q]) for q in queries[:4]} == {0, 1, 2, 3}
    for query, near in zip(queries, found, strict=True):
        cosines = [
            x[query] @ x[i] / np.linalg.norm(x[query]) / np.linalg.norm(x[i]) for i in range(40)
        ]
        cosines[query] = -2
        assert list(near) == sorted(range(40), key=lambda i: -cosines[i])[:6]


def test_columns_of_a_heatmap_stand_at_their_epochs():
    figure = plots.heatmap(["a", "b"], [4, 8, 12], [[0.01, 0.02, 0.03], [0.0, 0.05, 0.06]], "share")
    (image,) = figure.axes[0].images
    assert image.get_extent()[:2] == [2, 14]
    assert image.get_clim() == (0, 0.1)
    figure = plots.heatmap(["a"], [1, 2, 17], [[0.2, 0.4, 0.7]], "share")
    (mesh,) = figure.axes[0].collections
    corners = mesh.get_coordinates()[0, :, 0]
    assert corners.tolist() == pytest.approx([0.5, 1.5, 9.5, 24.5])
    assert mesh.get_clim() == (0, 1)


@pytest.mark.parametrize("values", [[0.3, 0.3 + 1e-9, 0.3], [0.0, 0.0, 0.0], [4e6, 4e6 + 1, 4e6]])
def test_axes_say_numbers_and_not_offsets(values):
    from sparse_ext.report.runlog import Series

    series, marks = {"x": Series([1, 2, 3], values)}, {"ramp starts": 2.0}
    figure: matplotlib.figure.Figure = plots.lines(series, "y", marks=marks)
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    assert "+" not in axis.get_offset_text().get_text()
    low, high = figure.axes[0].get_ylim()
    assert low <= min(values) <= max(values) <= high
    assert high - low > 1e-3 * max(abs(low), abs(high))
    if not any(values):
        assert (low, high) == (0, 1)
