# SPDX-License-Identifier: MIT
"""What an exported file says of its encoder: how it is built, and which images it wants."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solo.data.catalogue import known
from solo.data.shown import shown
from solo.files.run_args import EMBEDDED

#: sections of a run's configuration that rebuild its encoder and show it images
_KEPT = ("name", "method", "pretrain_method", "backbone", "augmentations", "image_size", "pruned")
_PLACES = ("path", "train_path", "val_path")  # of no use on another machine


def description(args: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of a file that holds the encoder of a run.

    Args:
        args: configuration of the run (`args.json`).

    Returns:
        `image_size`, `mean`, `std` and, where they are known, `classes` (names in the order of the
        labels), each as JSON; and what `solo.load_pretrained` needs to build the encoder again.
    """
    data = dict(args.get("data") or {})
    images = shown(known(data.get("dataset")), args)
    kept = {key: args[key] for key in _KEPT if key in args}
    kept["data"] = {key: value for key, value in data.items() if key not in _PLACES}
    about: dict[str, Any] = {
        "image_size": images.size,
        "mean": list(images.mean),
        "std": list(images.std),
        EMBEDDED: kept,
    }
    if names := class_names(args):
        about["classes"] = names
    return {key: json.dumps(value) for key, value in about.items()}


def class_names(args: Mapping[str, Any]) -> list[str]:
    """Names of the classes of a run's images, in the order of the labels; empty if unknown.

    They are those of the class folders, as long as these lie where the run had them.
    """
    from solo.data.datasets.folders import class_folders

    data = args.get("data") or {}
    folder = data.get("train_path")
    if data.get("no_labels") or folder is None or not Path(folder).is_dir():
        return []
    names = class_folders(Path(folder))
    return names if len(names) == data.get("num_classes") else []
