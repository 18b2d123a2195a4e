# SPDX-License-Identifier: MIT
"""The configuration of recovery: the pruned encoder learns the dense one's features again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solo.data.shown import input_size
from sparse_ext.prune.images import is_embedded


def configuration(
    args: Mapping[str, Any], source: str, pruned: Path, data: str, folder: Path, epochs: int
) -> dict[str, Any]:
    """What `main_pretrain.py` is given.

    Args:
        args: of the pruned run (`args.json`), which are those of its source.
        source: the dense encoder, who teaches.
        pruned: run folder of the pruned encoder, whose weights and masks the run starts from.
        data: folder of images, or the name of the embedded data set.
        folder: where the run goes.
        epochs: passes over the images.
    """
    embedded = is_embedded(data)
    size = input_size(args)
    return {
        "hydra": {"searchpath": ["pkg://solo.recipes"]},
        "defaults": ["base/pretrain", "_self_"],
        "name": f"{args.get('name', 'encoder')}-recovered",
        "method": "distill",
        "method_kwargs": {"teacher": source, "loss": "cosine", "stages": 1.0},
        "backbone": args["backbone"],
        "init_from": str(pruned),
        "sparse": {"name": "fixed", "granularity": args["pruned"]["granularity"]},
        "data": {
            "dataset": data if embedded else "custom",
            "train_path": None if embedded else data,
            "format": "resident" if embedded else "image_folder",
            "no_labels": not embedded,
            "num_workers": 0 if embedded else 2,
        },
        "augmentations": _views(args, size),
        "optimizer": {
            "name": "adamw",
            "batch_size": 64,
            "lr": 0.004,
            "classifier_lr": 0.004,
            "weight_decay": 1e-4,
        },
        "scheduler": {"name": "warmup_cosine", "warmup_epochs": 0.5},
        "checkpoint": {"enabled": True, "dir": str(folder)},
        "auto_resume": {"enabled": True},
        "max_epochs": epochs,
        "check_val_every_n_epoch": epochs,
        "devices": 1,
        "accelerator": "auto",
        "strategy": "auto",
        "sync_batchnorm": False,
    }


def _views(args: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    """One view of each image: crops of at least half of it, as the encoder will see it."""
    first = (args.get("augmentations") or [{}])[0]
    statistics = {key: first[key] for key in ("mean", "std") if first.get(key)}
    return [
        {
            "rrc": {"enabled": True, "crop_min_scale": 0.5, "crop_max_scale": 1.0},
            "color_jitter": first.get("color_jitter") or {"prob": 0.0},
            "crop_size": size,
            "num_crops": 1,
            **statistics,
        }
    ]
