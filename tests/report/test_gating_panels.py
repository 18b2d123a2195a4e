# SPDX-License-Identifier: MIT
"""The run report of gated encoders: what is drawn are the logged figures; feature maps."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from solo.errors import ConfigError, DataError
from solo.utils.views import encoding
from sparse_ext.cost import count
from sparse_ext.gating.encoder import gating_of, trace
from sparse_ext.gating.methods.spatial.maps import closed, feature_maps, load_images
from sparse_ext.report import write_report
from sparse_ext.report.gating_panels import branches
from sparse_ext.report.runlog import RunLog
from tests.gating.helpers import gated_encoder
from tests.report.test_report import figures, write_metrics

pytestmark = pytest.mark.unit

LAYERS = ("layer1.0.conv1", "layer1.0.conv2")


def cdg_run(folder):
    rows = []
    for epoch in range(3):
        row = {"epoch": epoch, "step": 10 * epoch + 9, "gating/threshold_loss_epoch": 0.1}
        row |= {"train_nce_loss_epoch": 4.0, "gating/mask_similarity": 0.6 - 0.1 * epoch}
        for prefix in ("gating/a1/", "gating/a2/", "gating/val_"):
            row |= {f"{prefix}rho": 0.9 - 0.1 * epoch, f"{prefix}eta": 0.5 + 0.1 * epoch}
            row |= {f"{prefix}eta/{name}": 0.3 + 0.1 * i for i, name in enumerate(LAYERS)}
        rows.append(row | {f"gating/mask_similarity/{name}": 0.5 for name in LAYERS})
    (folder / "args.json").parent.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(
        '{"name": "toy", "method_kwargs": {}, "gating": {"name": "cdg", "groups": 8}}'
    )
    return write_metrics(folder, rows)


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that a page takes in, in order."""
    from sparse_ext.report import page

    found = []
    monkeypatch.setattr(page, "data_uri", lambda figure: found.append(figure) or "")
    return found


def lines_of(figure):
    return {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].get_lines()}


def test_a_run_of_cdg(tmp_path):
    log = RunLog(cdg_run(tmp_path))
    assert branches(log) == {
        "gating/a1/": "training views, branch a1",
        "gating/a2/": "training views, branch a2",
        "gating/val_": "validation images",
    }
    html = write_report(tmp_path).read_text()
    assert set(figures(html)) == {
        *("Self-supervised loss", "Losses of the gates", "MACs of the gated encoder"),
        *("Conditional sparsity", "Mask similarity"),
        "Conditional sparsity per layer (training views, branch a1)",
        "Conditional sparsity per layer (training views, branch a2)",
        "Conditional sparsity per layer, validation",
        "Mask similarity per layer (training views)",
    }
    assert "cdg, groups=8" in html
    assert "Counted, not timed" in html


def test_figures_carry_the_logged_values(tmp_path, drawn):
    write_report(cdg_run(tmp_path))
    loss, gates, macs, eta, alike = drawn[:5]
    assert set(lines_of(loss)) == {"nce loss"}
    assert lines_of(gates) == {"threshold loss": [0.1] * 3}
    assert lines_of(macs)["validation images"] == pytest.approx([90, 80, 70])
    assert lines_of(eta)["training views, branch a2"] == pytest.approx([50, 60, 70])
    assert lines_of(alike)["all layers"] == pytest.approx([0.6, 0.5, 0.4])
    (bars,) = (f for f in drawn if f.axes[0].patches and not f.axes[0].images)
    assert [bar.get_width() for bar in bars.axes[0].patches] == pytest.approx([30, 40])
    shown = [f.axes[0].images[0].get_array() for f in drawn if f.axes[0].images]
    assert shown[0].ravel().tolist() == pytest.approx([0.3] * 3 + [0.4] * 3)


def test_runs_with_one_branch_and_evaluations(tmp_path, drawn):
    row = {"epoch": 0, "step": 9, "gating/rho": 0.4, "gating/val_rho": 0.3}
    row |= {"gating/rate/layer1.0": 0.25, "gating/val_rate/layer1.0": 0.2}
    write_metrics(tmp_path / "dual", [row])
    assert set(branches(RunLog(tmp_path / "dual"))) == {"gating/", "gating/val_"}
    html = write_report(tmp_path / "dual").read_text()
    assert "Open gates per block (training views)" in html
    assert "Open gates per block, validation" in html
    row = {"epoch": 0, "step": 9, "encoder/rho": 0.4, "encoder/eta": 0.7, "encoder/eta/a": 0.7}
    write_metrics(tmp_path / "linear", [row])
    html = write_report(tmp_path / "linear").read_text()
    assert "Conditional sparsity per layer, validation" in html


@pytest.mark.parametrize("name", ["cdg", "cgnet"])
def test_feature_maps_are_the_two_convolutions(name):
    backbone = gated_encoder(name, groups=2).eval()
    images, layer = torch.randn(3, 3, 8, 8), backbone.layer1[0].conv1
    torch.nn.init.constant_(layer.tau, 0.2)
    maps, channel = feature_maps(backbone, images)
    assert set(maps) == ({"a1", "a2"} if name == "cdg" else {"a1"})
    x = torch.relu(backbone.bn1(backbone.conv1(images)))
    for branch, found in maps.items():
        first = slice(0, 2) if branch == "a1" else slice(2, 4)
        inner = torch.zeros(4, 4, 1, 1)
        inner[:2, first], inner[2:, :] = 1, 1
        inner[2:, first] = 0
        base = F.conv2d(x, layer.weight * inner, padding=1)
        whole = F.conv2d(x, layer.weight, padding=1)
        norm = layer.norms[branch]
        u = (base - norm.running_mean[:, None, None]) / (
            norm.running_var[:, None, None] + 1e-5
        ) ** 0.5
        m = (u > 0.2).float()
        torch.testing.assert_close(found.base, base[:, channel])
        torch.testing.assert_close(found.conditional, ((whole - base) * m)[:, channel])
        torch.testing.assert_close(found.total, found.base + found.conditional)
        share = (1 - m[:, channel]).mean().item()
        assert closed(maps)[branch] == pytest.approx(share, abs=1e-6)
        with encoding(0 if branch == "a1" else 1), torch.no_grad():
            torch.testing.assert_close(layer(x)[:, channel], found.total)
    spread = feature_maps(backbone, images, channel=channel)[0]["a1"].total.std(dim=(1, 2)).mean()
    for other in range(4):
        one = feature_maps(backbone, images, channel=other)[0]["a1"].total
        assert one.std(dim=(1, 2)).mean() <= spread
    assert gating_of(backbone).config.eval == "a1"
    assert gating_of(backbone).context.collect() == {}


CIFAR = {"data": {"dataset": "cifar10"}, "augmentations": [{"crop_size": 32}]}


def test_feature_maps_of_what_is_not_there(tmp_path):
    backbone, images = gated_encoder("cdg", groups=2), torch.randn(1, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"--layer 'layer1\.0\.conv3'.*layer1\.0\.conv"):
        feature_maps(backbone, images, "layer1.0.conv3")
    with pytest.raises(ConfigError, match="has channels 0 to 3"):
        feature_maps(backbone, images, channel=4)
    with pytest.raises(ConfigError, match="is gated by fbs"):
        feature_maps(gated_encoder("fbs"), images)
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"--images: Cannot read image .*a\.png': not an image"):
        load_images([tmp_path / "a.png"], CIFAR)
    Image.new("RGB", (40, 50)).save(tmp_path / "b.png")
    pictures, tensors = load_images([tmp_path / "b.png"], CIFAR)
    assert pictures[0].shape == (50, 40, 3)
    assert tensors.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", ["cdg", "dgc", "vicreg_dual"])
def test_the_cost_table_counts_the_network_and_not_its_simulation(name):
    backbone = gated_encoder(name, **({"groups": 2} if name == "cdg" else {}))
    table = count(backbone, 16)
    own = sum(layer.macs_dense for layer in table.layers if "fc" not in layer.name)
    if name == "cdg":
        assert table.macs_dense == own == trace(backbone, 16).macs_dense
    assert table.other_macs == 0
