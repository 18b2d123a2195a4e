# SPDX-License-Identifier: MIT
"""A SyncCP run of few steps, and what its tests share."""

import torch

from solo.utils.lars import LARS
from sparse_ext import sparsify
from tests.pruning.toys import data, trainer

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=1e-2),
    "lars": lambda p: LARS(p, 0.5, momentum=0.9, weight_decay=1e-2, eta=0.02, clip_lr=True),
}
FAST = {"name": "synccp", "csi": "off", "update_period": 2}
UNITS = ["element", "2:4", "block8"]


def fit(model, loader=None, section=None, **kwargs):
    """Train; returns the callback."""
    callback = sparsify(model, section or FAST)
    run = trainer(**kwargs)
    run.fit(model, loader or data())
    callback.trainer_of_test = run
    return callback
