# SPDX-License-Identifier: MIT
"""A method and an encoder of somebody else's package, from pretraining to evaluation."""

import json
import os
import subprocess
import sys

import pytest

from tests.docs.test_snippets import ROOT, snippets

pytestmark = pytest.mark.unit
PAGE = ROOT / "docs" / "adding_a_method.md"
ENCODER = """
from torch import nn
from solo.backbones import register_backbone


def tiny(method=None, width=8):
    net = nn.Sequential(
        nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    net.num_features = width
    return net


register_backbone("tiny", tiny)
"""
CONFIG = """
name: outside
method: align_uniform
imports: [my_methods]
method_kwargs: {proj_hidden_dim: 16, proj_output_dim: 8}
backbone: {name: tiny, kwargs: {width: 12}}
data: {dataset: digits, format: image_folder, num_workers: 0}
optimizer: {name: sgd, batch_size: 32, lr: 0.1, classifier_lr: 0.1, weight_decay: 0}
scheduler: {name: none}
checkpoint: {enabled: True, dir: runs}
max_epochs: 1
devices: 1
accelerator: cpu
limit_train_batches: 2
limit_val_batches: 1
augmentations:
  - {crop_size: 32, num_crops: 2}
"""


def run(folder, *words):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / words[0]), *words[1:]],
        cwd=folder, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_method_and_an_encoder_from_a_temporary_folder(tmp_path):
    code = snippets(PAGE, "python")[0]
    (tmp_path / "my_methods.py").write_text(code + ENCODER)
    (tmp_path / "c.yaml").write_text(CONFIG)
    options = ("main_pretrain.py", "--config-path", str(tmp_path), "--config-name", "c.yaml")
    status, text = run(tmp_path, *options)
    assert status == 0, text[-3000:]
    (args,) = tmp_path.glob("runs/align_uniform/*/args.json")
    assert json.loads(args.read_text())["imports"] == ["my_methods"]
    knn = ("--dataset", "digits", "--k", "5", "--num_workers", "0", "--device", "cpu")
    where = ("--pretrained_checkpoint_dir", str(args.parent))
    status, text = run(tmp_path, "main_knn.py", "--imports", "my_methods", *knn, *where)
    assert status == 0, text[-3000:]
    status, text = run(tmp_path, *options, "imports=[my_methds]")
    assert status == 2
    assert "imports: 'my_methds' cannot be imported" in text
