# SPDX-License-Identifier: MIT
"""Configurations that run in a second or two on a CPU."""

import copy

from omegaconf import DictConfig, OmegaConf

AUGMENTATION = {
    "crop_size": 32,
    "num_crops": 2,
    "rrc": {"enabled": True, "crop_min_scale": 0.3, "crop_max_scale": 1.0},
    "color_jitter": {
        "prob": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
    },
    "gaussian_blur": {"prob": 0.5},
    "horizontal_flip": {"prob": 0.0},
}
COMMON = {
    "backbone": {"name": "resnet18", "kwargs": {"width": 2}},
    "data": {"dataset": "digits", "num_workers": 0},
    "scheduler": {"name": "warmup_cosine", "warmup_epochs": 1},
    "checkpoint": {"enabled": True},
    "max_epochs": 1,
    "devices": [0],
    "accelerator": "cpu",
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
PRETRAIN = {
    **COMMON,
    "name": "tiny",
    "method": "mocov2plus",
    "method_kwargs": {
        "proj_hidden_dim": 16,
        "proj_output_dim": 8,
        "queue_size": 32,
        "temperature": 0.2,
    },
    "momentum": {"base_tau": 0.9, "final_tau": 1.0},
    "augmentations": [AUGMENTATION],
    "optimizer": {
        "name": "sgd",
        "batch_size": 16,
        "lr": 0.5,
        "classifier_lr": 0.5,
        "weight_decay": 1e-4,
    },
}
LINEAR = {
    **COMMON,
    "name": "tiny-linear",
    "pretrain_method": "mocov2plus",
    "pretrained_feature_extractor": None,
    "optimizer": {"name": "sgd", "batch_size": 16, "lr": 0.5, "weight_decay": 0},
}


def config(base: dict, **overrides) -> DictConfig:
    """`base` with dotted overrides, written with double underscores: `optimizer__lr=1`."""
    cfg = OmegaConf.create(copy.deepcopy(base))
    for key, value in overrides.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=False, force_add=True)
    return cfg


def run_of(folder, method="mocov2plus", version="0"):
    """(folder, path of the newest checkpoint) of a run below `folder`/trained_models."""
    run = folder / "trained_models" / method / version
    checkpoint = max(run.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return run, checkpoint
