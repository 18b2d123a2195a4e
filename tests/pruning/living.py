# SPDX-License-Identifier: MIT
"""Methods of solo with a sparse section on the tiny encoder."""

import torch

from solo.methods import METHODS
from sparse_ext import enable
from tests.methods.helpers import tiny_cfg

KWARGS = {
    "byol": {"proj_hidden_dim": 16, "proj_output_dim": 8, "pred_hidden_dim": 16},
    "simclr": {"proj_hidden_dim": 16, "proj_output_dim": 8, "temperature": 0.2},
    "barlow_twins": {"proj_hidden_dim": 16, "proj_output_dim": 8},
    "mocov2plus": {
        "proj_hidden_dim": 16, "proj_output_dim": 8, "temperature": 0.2, "queue_size": 16,
    },
}  # fmt: skip


def method(name, sparse, **changes):
    cfg = tiny_cfg(name, dict(KWARGS[name]), seed=5, **changes)
    if sparse is not None:
        cfg.sparse = sparse
        enable(cfg)
    torch.manual_seed(0)
    return METHODS[name](METHODS[name].add_and_assert_specific_cfg(cfg))
