# SPDX-License-Identifier: MIT
"""Of a channel-gated run: UMAP of both branches' features in its report, and its export."""

import json
import os

import numpy as np
import pytest
import torch

from solo.errors import CheckpointError
from solo.programs.pretrain import pretrain
from sparse_ext.extension import register
from sparse_ext.gating.encoder import choose, gating_of
from sparse_ext.gating.export import load_gated
from sparse_ext.gating.export.__main__ import main as export
from sparse_ext.report import RunLog, embedding, plots, write_report
from sparse_ext.report.__main__ import main
from tests.programs.tiny import PRETRAIN, config, run_of

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder and checkpoint of a small gated run on digits."""
    register()
    folder, before = tmp_path_factory.mktemp("run"), os.getcwd()
    os.chdir(folder)
    try:
        pretrain(
            config(
                PRETRAIN,
                method="vicreg",
                method_kwargs={"proj_hidden_dim": 16, "proj_output_dim": 8},
                backbone__kwargs={"width": 4},
                gating={"name": "vicreg_dual", "budget": 0.4},
                max_epochs=2,
            )
        )
    finally:
        os.chdir(before)
    return run_of(folder, "vicreg")


def test_what_the_gates_save_beside_the_budget(run, tmp_path, monkeypatch):
    drawn, real = [], plots.lines

    def spy(*args, **kwargs):
        drawn.append((args, kwargs))
        return real(*args, **kwargs)

    monkeypatch.setattr(plots, "lines", spy)
    html = write_report(run[0], tmp_path / "r.html").read_text()
    log = RunLog(run[0])
    shares, options = next((a[0], kw) for a, kw in drawn if a[1] == "of the dense MACs (%)")
    assert options["levels"] == {"budget (40%)": 40}
    assert shares["validation images"].values == [
        100 * value for value in log.series("gating/val_rho").values
    ]
    assert html.count("<h3>Open gates per block (training views)</h3>") == 1
    assert "vicreg_dual, budget=0.4" in html


def test_umap_of_both_branches(run, tmp_path, capsys, monkeypatch):
    log = RunLog(run[0])
    found = embedding.features(log, 50)
    assert list(found) == ["gated", "dense"]
    assert {x.shape for x, _ in found.values()} == {(50, 32)}
    assert np.array_equal(found["gated"][1], found["dense"][1])
    backbone, dataset = embedding._encoder(log), embedding._images(log)
    places = sorted(np.random.default_rng(0).permutation(len(dataset))[:50])
    first = dataset[int(places[0])][0].unsqueeze(0)
    for branch, (x, _) in found.items():  # the features of these very images, in this branch
        with torch.no_grad():
            wanted = choose(backbone, branch)(first)[0].numpy()
        np.testing.assert_allclose(x[0], wanted, atol=1e-5, rtol=1e-5)
    assert gating_of(backbone).config.budget == 0.4
    asked = []

    def embed(x, seed):  # umap-learn compiles for half a minute; tests/utils has it
        asked.append((x.shape, seed))
        return x[:, :2]

    monkeypatch.setattr("solo.utils.auto_umap.embed", embed)
    target = tmp_path / "r.html"
    assert main([str(run[0]), "--umap", "50", "--output", str(target)]) == 0
    html = target.read_text()
    assert asked == [((50, 32), 0)] * 2
    assert html.count("<h3>Features</h3>") == 1
    assert "UMAP of the features of 50 validation images" in html
    assert str(target) in capsys.readouterr().out


def test_umap_needs_a_checkpoint(run, tmp_path, capsys):
    for name in ("metrics.csv", "args.json"):
        (tmp_path / name).write_bytes((run[0] / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"--umap: .* no \.ckpt file in it"):
        write_report(tmp_path, umap=50)
    assert main([str(tmp_path), "--umap", "50"]) == 2
    assert "error: --umap" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--umap", "2"])


def test_points_carry_positions_and_classes():
    xy, classes = np.arange(8.0).reshape(4, 2), np.array([0, 1, 1, 2])
    figure = plots.points({"gated": (xy, classes), "dense": (xy + 1, classes)})
    assert [axes.get_title() for axes in figure.axes] == ["gated", "dense"]
    (dots,) = figure.axes[1].collections
    np.testing.assert_array_equal(dots.get_offsets(), xy + 1)
    np.testing.assert_array_equal(dots.get_array(), classes)


# ---- the command that exports a run ----


def test_the_export_command(run, tmp_path, capsys):
    folder = tmp_path / "light"
    for source in run:  # the folder of the run, its checkpoint
        assert export([str(source), "--output", str(folder)]) == 0
        out = capsys.readouterr().out
        assert "largest deviation from the simulation" in out
        assert f"Wrote {folder}" in out
    encoder = load_gated(folder)
    backbone = choose(embedding._encoder(RunLog(run[0])), "gated")
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), backbone(x), atol=1e-4, rtol=1e-5)
    assert (encoder.facts["dataset"], encoder.facts["image_size"]) == ("digits", 32)
    assert json.loads((folder / "config.json").read_text())["facts"]["source"] == run[1].name


def test_mistakes_of_the_export_command(run, tmp_path, capsys):
    content = torch.load(run[1])
    content["state_dict"]["backbone.bn1.bias"][0] = float("nan")
    for name in ("args.json",):
        (tmp_path / name).write_bytes((run[0] / name).read_bytes())
    torch.save(content, tmp_path / "broken.ckpt")
    words = ["--output", str(tmp_path / "light")]
    for source, message in (
        (tmp_path / "broken.ckpt", "holds values that are NaN"),
        (tmp_path / "none.ckpt", "none.ckpt"),
        (tmp_path / "nowhere", "nowhere"),
    ):
        assert export([str(source), *words]) == 2
        assert message in capsys.readouterr().err
    assert export([str(run[1]), *words, "--eval_encoder", "momentum"]) == 2
    assert "momentum" in capsys.readouterr().err
    assert not (tmp_path / "light").exists()
