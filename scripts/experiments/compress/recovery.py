# SPDX-License-Identifier: MIT
"""The configuration of recovery: the pruned encoder learns the dense one's features again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solo.data.catalogue import known
from solo.data.datasets.folders import image_files, images_below
from solo.data.shown import reading_of, shown
from sparse_ext.prune.images import is_embedded

BATCH = 64  # images per step; all of them where there are fewer


def configuration(
    args: Mapping[str, Any], source: str, pruned: Path, data: str, epochs: int
) -> dict[str, Any]:
    """What `main_pretrain.py` is given, but for seed and place of the run.

    Args:
        args: of the pruned run (`args.json`), which are those of its source.
        source: the dense encoder, who teaches.
        pruned: run folder of the pruned encoder, whose weights and masks the run starts from.
        data: folder of images, or the name of the embedded data set.
        epochs: passes over the images.
    """
    embedded = is_embedded(data)
    return {
        "hydra": {"searchpath": ["pkg://solo.recipes"]},
        "defaults": ["base/pretrain", "_self_"],
        "name": f"{args.get('name', 'encoder')}-recovered",
        "method": "distill",
        "method_kwargs": {"teacher": source, "loss": "cosine", "stages": 1.0},
        "backbone": args["backbone"],
        "init_from": str(pruned),
        "sparse": {"name": "fixed", "granularity": args["pruned"]["granularity"]},
        "data": {**reading_of(args), **(_embedded(data) if embedded else _folder(data))},
        "augmentations": _views(args),
        "optimizer": {
            "name": "adamw",
            "batch_size": BATCH if embedded else min(BATCH, _count(data)),
            "lr": 0.004,
            "classifier_lr": 0.004,
            "weight_decay": 1e-4,
        },
        "scheduler": {"name": "warmup_cosine", "warmup_epochs": 0.5},
        "auto_resume": {"enabled": True},
        "max_epochs": epochs,
        "check_val_every_n_epoch": epochs,
        "devices": 1,
        "accelerator": "auto",
        "strategy": "auto",
        "sync_batchnorm": False,
    }


def key_of(config: Mapping[str, Any], pruned: Mapping[str, Any]) -> str:
    """A folder's name that another source, other images or settings do not share.

    The pruned encoder lies in one place whatever was asked for, so a recovery in a folder shared by
    all would be taken for the one that is to go on.

    Args:
        config: of the recovery.
        pruned: how the encoder was pruned (`pruned` of its `args.json`).
    """
    text = json.dumps([config, pruned], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _embedded(data: str) -> dict[str, Any]:
    return {"dataset": data, "train_path": None, "format": "resident", "num_workers": 0}


def _folder(data: str) -> dict[str, Any]:
    """A folder of images: in class folders, whose names do not matter, or directly in it."""
    return {
        "dataset": "custom",
        "train_path": data,
        "format": "image_folder",
        "no_labels": bool(image_files(Path(data))),
        "num_workers": 2,
    }


def _count(data: str) -> int:
    return len(image_files(Path(data)) or images_below(data))


def _views(args: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One view of each image: crops of at least half of it, as the encoder will see it."""
    first = (args.get("augmentations") or [{}])[0]
    look = shown(known(args["data"].get("dataset")), args)
    return [
        {
            "rrc": {"enabled": True, "crop_min_scale": 0.5, "crop_max_scale": 1.0},
            "color_jitter": first.get("color_jitter") or {"prob": 0.0},
            "crop_size": look.size,
            "num_crops": 1,
            "mean": list(look.mean),
            "std": list(look.std),
        }
    ]
