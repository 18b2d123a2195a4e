# SPDX-License-Identifier: MIT
"""UMAP of what a run's encoder makes of validation images, every branch beside the other.

Dual, Figure 2: dense and gated features. The images are those of the run's `data.val_path`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from solo.data.catalogue import info_of
from solo.data.shown import Shown, shown
from solo.errors import CheckpointError
from sparse_ext.report import plots
from sparse_ext.report.page import Page
from sparse_ext.report.runlog import RunLog

SEED = 0


def embeddings(page: Page, log: RunLog, images: int) -> None:
    """Add a figure with one embedding per branch of the last checkpoint's encoder.

    Args:
        page: to add to.
        log: the run.
        images: how many validation images, in order of a fixed draw.

    Raises:
        DataError: the folder has no checkpoint or args.json, or its images are not there.
        ConfigError: umap-learn is not installed.
    """
    from solo.utils.auto_umap import embed

    found = features(log, images)
    panels = {name: (embed(x, SEED), y) for name, (x, y) in found.items()}
    count = len(next(iter(found.values()))[1])
    text = (
        f"UMAP of the features of {count:,} validation images (n_neighbors 15, seed {SEED}), each "
        f"branch embedded by itself: axes and distances between panels mean nothing. Colours are "
        f"classes."
    )
    page.figure("Features", plots.points(panels), text, wide=True)


def features(log: RunLog, images: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features (N, F) and labels (N,) by branch; one entry, `features`, without gates."""
    from sparse_ext.gating.encoder import choose, gating_of

    backbone = _encoder(log)
    dataset, places, _ = drawn_images(log, images)
    gating = gating_of(backbone)
    branches = ("features",) if gating is None else gating.context.branches
    found = {}
    for branch in branches:
        if gating is not None:
            choose(backbone, branch)
        found[branch] = features_of(backbone, dataset, places)
    return found


def drawn_images(log: RunLog, images: int) -> tuple[Any, list[int], Shown]:
    """The run's validation images, positions of `images` of them, and how they are shown.

    Of a run on images without labels, which has no others, training images with the label -1.

    Raises:
        DataError: they are not there.
    """
    dataset = _images(log)
    drawn = np.random.default_rng(SEED).permutation(len(dataset))[:images]
    return dataset, sorted(int(i) for i in drawn), _shown(log)


def features_of(
    backbone: Any, dataset: Any, places: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, F) and labels (N,) of those images."""
    from torch.utils.data import DataLoader, Subset

    from solo.utils.auto_umap import collect

    x, y = collect(backbone, DataLoader(Subset(dataset, places), batch_size=128), "cpu")
    return x.numpy(), y.numpy()


def _encoder(log: RunLog) -> Any:
    from solo.checkpoints import load_run

    try:
        return load_run(log.folder)[0].eval()
    except CheckpointError as error:
        raise CheckpointError(f"--umap: {error}") from error


def _images(log: RunLog) -> Any:
    """Validation images of a run: its own, those held out, or the training images where none are.

    Only images without labels come to the last.
    """
    from solo.data.classification_dataloader import prepare_val_data
    from solo.data.datasets import holdout
    from solo.data.datasets.folders import stored_format

    data = log.args["data"]
    info, path, held = info_of(data["dataset"]), data.get("val_path"), None
    if path is None and info.path == "required":
        path = data["train_path"]
        if data.get("no_labels"):
            return _Unlabelled(log.args, path)
        held = holdout.read(log.folder)
    loader = prepare_val_data(
        info,
        _shown(log),
        val_data_path=path,
        data_format=stored_format(data.get("format") or "image_folder", path),
        num_workers=0,
        download=False,
        exif=data.get("exif") or "ignore",
        value_range=data.get("value_range"),
        skip_unreadable=data.get("skip_unreadable") or False,
        holdout=held,
    )
    return loader.dataset


class _Unlabelled:
    """The images below a folder, as evaluation shows them, each with the label -1."""

    def __init__(self, args: Mapping[str, Any], folder: str) -> None:
        from solo.data.datasets.folders import images_below, require_folder
        from solo.data.preprocess import Preprocess

        self.files = images_below(require_folder(folder, "data.train_path"))
        self.preprocess = Preprocess(args)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.preprocess(self.files[index]), -1


def _shown(log: RunLog) -> Shown:
    data = log.args["data"]
    return shown(info_of(data["dataset"]), log.args, size=data.get("image_size"))
