# SPDX-License-Identifier: MIT
"""Pictures of features: files, frequency, and one real embedding."""

import sys

import numpy as np
import pytest
import torch

from solo.errors import ConfigError
from solo.monitoring.loggers import CSVMetrics
from solo.utils import auto_umap
from solo.utils.auto_umap import AutoUMAP, OfflineUMAP, embed
from tests.utils.toy import Toy, fit, loader

pytest.importorskip("umap")


@pytest.fixture
def fast_embedding(monkeypatch):
    """The first two features stand for the embedding."""
    seen = []
    monkeypatch.setattr(auto_umap, "_libraries", lambda: (None, pytest.importorskip("seaborn")))
    monkeypatch.setattr(auto_umap, "embed", lambda x: seen.append(x) or x[:, :2])
    return seen


@pytest.mark.unit
def test_a_picture_every_other_epoch(tmp_path, fast_embedding):
    module = Toy()
    drawer = AutoUMAP("toy", tmp_path, frequency=2, keep_previous=True)
    fit(module, [drawer], val=True, logger=CSVMetrics(tmp_path))
    assert drawer.umap_placeholder == "toy-0-ep={}.pdf"
    written = sorted((tmp_path / "0").glob("*.pdf"))
    assert [path.name for path in written] == ["toy-0-ep=0.pdf", "toy-0-ep=2.pdf"]
    assert written[0].read_bytes()[:5] == b"%PDF-"
    expected = module.backbone(loader().dataset.tensors[0]).detach().numpy()
    np.testing.assert_allclose(fast_embedding[-1], expected, rtol=1e-5)
    assert module.training is False or module.backbone.training


@pytest.mark.unit
def test_only_the_newest_is_kept(tmp_path, fast_embedding):
    fit(Toy(), [AutoUMAP("toy", tmp_path)], val=True, logger=CSVMetrics(tmp_path))
    assert [path.name for path in (tmp_path / "0").glob("*.pdf")] == ["toy-0-ep=2.pdf"]


@pytest.mark.unit
def test_offline_restores_training_mode(tmp_path, fast_embedding):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.9))
    OfflineUMAP().plot("cpu", model, loader(), tmp_path / "a.pdf")
    assert model.training
    np.testing.assert_allclose(
        fast_embedding[0], model[0](loader().dataset.tensors[0]).detach().numpy(), rtol=1e-5
    )
    assert (tmp_path / "a.pdf").stat().st_size > 1000


@pytest.mark.unit
def test_a_picture_has_a_title_a_legend_and_class_names(tmp_path):
    pytest.importorskip("seaborn")
    x, y = np.arange(12.0).reshape(6, 2), np.array([0, 2, 2, 0, 1, 1])
    figure = auto_umap.draw(x, y, tmp_path / "a.png", title="six", classes=["cat", "dog", "eel"])
    (axes,) = figure.axes
    assert axes.get_title() == "six"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["cat", "dog", "eel"]
    for label, dots in enumerate(axes.collections):
        np.testing.assert_array_equal(dots.get_offsets(), x[y == label])
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    many = auto_umap.draw(np.zeros((40, 2)), np.arange(40), tmp_path / "b.pdf")
    assert not many.legends
    assert many.axes[0].get_xlabel() == "colours: 40 classes"


@pytest.mark.unit
def test_class_names_of_a_part_of_a_data_set():
    class Named(torch.utils.data.Dataset):
        classes = ("cat", "dog")

        def __len__(self):
            return 4

    part = torch.utils.data.Subset(Named(), [1, 2])
    assert auto_umap.class_names(torch.utils.data.DataLoader(part)) == ["cat", "dog"]
    assert auto_umap.class_names(loader()) == []


@pytest.mark.unit
def test_missing_library(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match="pip install umap-learn seaborn"):
        OfflineUMAP().plot("cpu", torch.nn.Linear(4, 3), loader(), tmp_path / "a.pdf")


@pytest.mark.slow
def test_a_real_embedding_separates_two_clusters():
    x = np.random.default_rng(0).normal(size=(60, 8))
    x[30:] += 20
    points = embed(x)
    assert points.shape == (60, 2)
    gap = np.linalg.norm(points[:30].mean(0) - points[30:].mean(0))
    assert gap > 2 * max(points[:30].std(), points[30:].std())
