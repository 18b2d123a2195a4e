# SPDX-License-Identifier: MIT
"""A sweep that takes seconds: digits, a ResNet-18 of width 2, four steps per level."""

import copy

from omegaconf import DictConfig, OmegaConf


class Stop(Exception):
    """Raised by a test to end a training before it begins."""


BASE = {
    "name": "tiny",
    "method": "rotnet",
    "backbone": {"name": "resnet18", "kwargs": {"width": 2}},
    "data": {"dataset": "digits", "num_workers": 0},
    "augmentations": [{"crop_size": 16, "num_crops": 1, "rrc": {"enabled": True}}],
    "optimizer": {
        "name": "sgd",
        "batch_size": 16,
        "lr": 0.5,
        "classifier_lr": 0.5,
        "weight_decay": 1e-4,
    },
    "scheduler": {"name": "warmup_cosine", "warmup_epochs": 1},
    "max_epochs": 2,
    "devices": [0],
    "accelerator": "cpu",
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def config(tickets=None, retrain=None, **overrides) -> DictConfig:
    """`BASE` with a section of ours and dotted overrides (`optimizer__lr=1`)."""
    cfg = OmegaConf.create(copy.deepcopy(BASE))
    for name, section in (("tickets", tickets), ("retrain", retrain)):
        if section is not None:
            cfg[name] = section
    for key, value in overrides.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=False, force_add=True)
    return cfg


def sweep_section(**changes):
    """Three levels, rewound to the state after two steps (32 images)."""
    return {"levels": 2, "rewind_samples": 32, **changes}
