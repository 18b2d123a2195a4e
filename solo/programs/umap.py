# SPDX-License-Identifier: MIT
"""UMAP pictures of a pretrained checkpoint's features."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from solo import extensions
from solo.data.catalogue import info_of
from solo.programs.evaluation import (
    Features,
    device_of,
    evaluation_loaders,
    load_method,
    sizes_explained,
)
from solo.utils.auto_umap import OfflineUMAP


def umap(args: Namespace) -> list[Path]:
    """Run `main_umap.py`: one PDF per split in the current folder, as solo-learn names them.

    Raises:
        SoloError: a mistake in the arguments, the checkpoint or the data.
    """
    device = device_of(args.device)
    model = load_method(
        args.pretrained_checkpoint_dir, args.eval_encoder, extensions.evaluation_settings(args)
    )
    encoder = Features(model, args.eval_encoder)
    info = info_of(args.dataset)
    written = []
    for split, loader in zip(("train", "val"), evaluation_loaders(args), strict=True):
        if loader is not None:
            path = Path(f"{info.short or info.name}_{split}_umap.pdf")
            with sizes_explained():
                OfflineUMAP().plot(device, encoder, loader, path)
            print(f"Wrote {path}")
            written.append(path)
    return written
