# SPDX-License-Identifier: MIT
"""Checkpoints of equal content are equal files."""

import collections
import pickle

import pytest
import torch
from torch import nn

from solo.checkpoints.writer import CheckpointWriter

pytestmark = pytest.mark.unit


def content():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    names = ["layer one", "layer two"]
    return {
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "extra": {"layers": names, "again": names, "by": dict.fromkeys(names, (1, "layer one"))},
    }


def test_a_state_that_came_from_a_file_makes_the_same_bytes(tmp_path):
    writer, first, second = CheckpointWriter(), tmp_path / "first", tmp_path / "second.ckpt"
    straight = content()
    writer.save_checkpoint(straight, first)
    resumed = content() | {"extra": torch.load(first, weights_only=True)["extra"]}
    assert pickle.dumps(resumed) != pickle.dumps(straight)
    writer.save_checkpoint(resumed, second)
    assert first.read_bytes() == second.read_bytes()


def test_what_is_read_is_what_was_written(tmp_path):
    wanted = content()
    CheckpointWriter().save_checkpoint(wanted, tmp_path / "a.ckpt")
    found = CheckpointWriter().load_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert found["extra"] == wanted["extra"]
    assert isinstance(found["state_dict"], collections.OrderedDict)
    assert found["state_dict"]._metadata == wanted["state_dict"]._metadata
    for key, value in wanted["state_dict"].items():
        assert torch.equal(found["state_dict"][key], value)
    assert wanted["extra"]["layers"] is wanted["extra"]["again"]  # the caller's own is untouched


def test_options_of_remote_storage_are_refused(tmp_path):
    with pytest.raises(TypeError, match="storage_options"):
        CheckpointWriter().save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"x": 1})
