# SPDX-License-Identifier: MIT
"""What a run goes on from is looked at before Lightning and torch take it apart."""

import copy

import pytest
import torch

from solo.checkpoints.training_state import check_training_state
from solo.errors import CheckpointError

pytestmark = pytest.mark.unit

PROGRESS = ("loops", "fit_loop", "epoch_progress")
COUNTS = {"total": {"ready": 3, "completed": 3}, "current": {"ready": 1}}
WHOLE = {
    "epoch": 1,
    "global_step": 6,
    "loops": {"fit_loop": {"state_dict": {"any": "thing"}, "epoch_progress": COUNTS}},
    "optimizer_states": [
        {
            "state": {
                1: {
                    "momentum_buffer": torch.zeros(2),
                    "step": 3,
                    "max": None,
                    "list": [torch.ones(1)],
                }
            },
            "param_groups": [{"params": [0, 2]}, {"params": [1]}],
        }
    ],
    "lr_schedulers": [],
    "pytorch-lightning_version": "2.6.0",
}


def test_a_whole_state_passes():
    check_training_state(WHOLE, "a.ckpt")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("loops",), torch.zeros(2), "'loops' is"),
        (
            ("loops", "fit_loop", "epoch_progress", "total", "ready"),
            -1,
            r"total\.ready' is no count",
        ),
        ((*PROGRESS, "current"), [1], r"current' is no count"),
        (("optimizer_states", 0, "state", 1), 0.5, "do not belong"),
        (("optimizer_states", 0, "state", 7), {}, "do not belong"),
        (("optimizer_states", 0, "param_groups", 0, "params"), [0, 1], "do not belong"),
        (("optimizer_states", 0, "param_groups", 0, "params"), [0, ""], "do not belong"),
        (("optimizer_states", 0, "param_groups", 0), torch.zeros(2), "do not belong"),
    ],
)
def test_what_cannot_be_continued_is_named(path, value, message):
    content = copy.deepcopy(WHOLE)
    node = content
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(CheckpointError, match=message):
        check_training_state(content, "a.ckpt")
