# SPDX-License-Identifier: MIT
"""The manifest is right, and verify.py notices when it is not."""

import copy
import importlib.util
import re
from pathlib import Path

import pytest

from solo.checkpoints.zoo import read_manifest, sha256
from solo.methods import METHODS

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("zoo_verify", ROOT / "zoo" / "verify.py")
verify = importlib.util.module_from_spec(spec)
spec.loader.exec_module(verify)


@pytest.fixture
def manifest():
    return copy.deepcopy(read_manifest())


def test_the_manifest_is_in_order(manifest):
    assert list(verify.problems(manifest)) == []
    assert len(manifest["models"]) >= 60


def test_methods_are_those_of_the_registry(manifest):
    assert set(METHODS) - {"base", "linear"} <= set(manifest["methods"])


def test_published_figures_by_hand(manifest):
    models = {model["name"]: model for model in manifest["models"]}
    assert models["byol-cifar10"]["published"] == [
        {"source": "solo-learn", "protocol": "online", "top1": 92.58, "top5": 99.79}
    ]
    mocov3 = models["mocov3-imagenet100-resnet50"]
    assert [figure["top1"] for figure in mocov3["published"]] == [85.48, 84.58]
    assert mocov3["command"].endswith("--config-name mocov3.yaml backbone.name=resnet50")
    assert models["mae-imagenet"]["published"][0]["protocol"] == "finetune"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "scripts/pretrain/cifar/none.yaml"}, "recipe '.*none.yaml' does not exist"),
        ({"command": "python3 main_pretrain.py"}, "command does not run the recipe"),
        ({"method": "byoll"}, "method 'byoll' is not in 'methods'"),
        ({"epochs": "many"}, "'epochs' must be there and be of type int"),
        ({"checkpiont": None}, "'checkpiont' is unknown"),
        ({"published": [{"protocol": "online", "source": "me"}]}, "source 'me' is not in"),
        (
            {"published": [{"protocol": "?", "source": "solo-learn", "top1": 9.0, "top5": 1.0}]},
            "top1 at most top5",
        ),
        ({"checkpoint": {"path": "gone.ckpt", "sha256": "0"}}, "'gone.ckpt' does not exist"),
        ({"checkpoint": {"path": "gone.ckpt"}}, "needs 'path' and 'sha256'"),
        ({"checkpoint": {"path": "manifest.json", "sha256": "0"}}, "another sha256: [0-9a-f]{64}"),
        ({"name": "byol-cifar100"}, "listed twice"),
    ],
)
def test_a_mistake_is_named(manifest, change, message):
    model = next(model for model in manifest["models"] if model["name"] == "byol-cifar10")
    model.update(change)
    assert any(re.search(message, text) for text in verify.problems(manifest))


def test_checkpoint_needs_its_configuration(manifest):
    file = ROOT / "zoo" / "manifest.json"
    manifest["models"][0]["checkpoint"] = {"path": file.name, "sha256": sha256(file)}
    assert any("no args.json beside it" in text for text in verify.problems(manifest))


def test_a_recipe_left_out_is_named(manifest):
    manifest["models"] = [m for m in manifest["models"] if not m["recipe"].endswith("wmse.yaml")]
    left_out = [text for text in verify.problems(manifest) if "is in no model's 'recipe'" in text]
    assert [text.split("/")[2] for text in left_out] == ["cifar", "imagenet-100"]


def test_tables_are_written_and_compared(manifest, tmp_path):
    (tmp_path / "docs").mkdir()
    text = f"# Title\n{verify.BEGIN}\nold\n{verify.END}\nafter\n"
    (tmp_path / "docs" / "methods.md").write_text(text)
    found = list(verify.tables(manifest, write=False, root=tmp_path))
    assert [f.split(":")[0] for f in found] == ["docs/methods.md", "docs/results.md"]
    assert "out of date" in found[0]
    assert "needs the lines" in found[1]
    (tmp_path / "docs" / "results.md").write_text(text)
    assert list(verify.tables(manifest, write=True, root=tmp_path)) == []
    assert list(verify.tables(manifest, write=False, root=tmp_path)) == []
    methods = (tmp_path / "docs" / "methods.md").read_text()
    assert methods.startswith("# Title\n")
    assert methods.endswith(f"{verify.END}\nafter\n")
    row = next(line for line in methods.splitlines() if "`byol`" in line)
    assert "| 92.58 | 70.46 | 80.16 / 80.32 | 68.63 / 68.37 |" in row
    assert "81.60 finetune" in methods
    results = (tmp_path / "docs" / "results.md").read_text()
    assert "| MoCo V3 | resnet50 | 400 | offline | 84.58 | 96.70 |" in results


def test_results_page_is_up_to_date(manifest):
    found = list(verify.tables(manifest, write=False))
    assert not [text for text in found if text.startswith("docs/results.md")]
