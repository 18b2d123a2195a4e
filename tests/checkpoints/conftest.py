# SPDX-License-Identifier: MIT
"""An encoder and its checkpoint."""

import pytest
import torch

from solo import extensions
from tests.checkpoints.lightning_files import encoder, lightning_file, prefixed


@pytest.fixture
def no_extensions(monkeypatch):
    """Nothing but solo: what sparse_ext registers does not count."""
    monkeypatch.setattr(extensions, "_EXTENSIONS", {})
    monkeypatch.setattr(extensions, "_discovered", True)


@pytest.fixture
def trained():
    return encoder(seed=1)


@pytest.fixture
def run(tmp_path, trained):
    state = prefixed(trained, "backbone.") | prefixed(encoder(2), "momentum_backbone.")
    state |= {"projector.0.weight": torch.zeros(2, 2), "classifier.weight": torch.zeros(2, 2)}
    return lightning_file(tmp_path / "byol" / "0" / "tiny-0-ep=3.ckpt", state)
