# SPDX-License-Identifier: MIT
"""UMAP pictures of a pretrained checkpoint's features."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from solo import extensions
from solo.data.catalogue import info_of
from solo.monitoring.quiet import quiet
from solo.programs.closing import tell_run
from solo.programs.evaluation import (
    Features,
    device_of,
    evaluation_loaders,
    load_method,
    sizes_explained,
)
from solo.utils.auto_umap import OfflineUMAP


def umap(args: Namespace) -> list[Path]:
    """Run `main_umap.py`: a PDF and a PNG per split in the run's folder, named as by solo-learn.

    Raises:
        SoloError: a mistake in the arguments, the checkpoint or the data.
    """
    quiet()
    device = device_of(args.device)
    model = load_method(
        args.pretrained_checkpoint_dir, args.eval_encoder, extensions.evaluation_settings(args)
    )
    encoder = Features(model, args.eval_encoder)
    info = info_of(args.dataset)
    folder = Path(args.pretrained_checkpoint_dir)
    written: list[Path] = []
    for split, loader in zip(("train", "val"), evaluation_loaders(args), strict=True):
        if loader is not None:
            stem = folder / f"{info.short or info.name}_{split}_umap"
            paths = [stem.with_suffix(".pdf"), stem.with_suffix(".png")]
            title = f"{args.eval_encoder} encoder of {folder}: {info.name}, {split}"
            with sizes_explained():
                OfflineUMAP().plot(device, encoder, loader, paths, title)
            print("\n".join(f"Wrote {path}" for path in paths))
            written += paths
    entry = {"dataset": info.name, "encoder": args.eval_encoder}
    files = [path.name for path in written]
    tell_run(folder, "umap", [{**entry, "files": files}], ("files",))
    return written
