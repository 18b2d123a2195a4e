# SPDX-License-Identifier: MIT
"""Quality of a finished run's encoder on a folder of images, without their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from solo.checkpoints.runs import load_run
from solo.data.classification_dataloader import folder_transform
from solo.data.datasets.folders import images_below
from solo.data.datasets.images import readers
from solo.data.pretrain_dataloader import build_transform_pipeline
from solo.data.shown import reading_of
from solo.errors import DataError
from solo.quality.measures import alpha_req, lidar, rankme


class ImagesOf(Dataset):
    """Every image of a folder and its subfolders by path; hidden files and folders do not count.

    Args:
        root: the folder.
        transforms: each makes one tensor of an image; an item is their stack.
        loader: from a path to an image.
        count: number of images, spread evenly over the folder; None for all.

    Raises:
        DataError: the folder is missing or holds no images.
    """

    def __init__(
        self,
        root: str | Path,
        transforms: list[Callable],
        loader: Callable,
        count: int | None = None,
    ):
        root = Path(root)
        if not root.is_dir():
            raise DataError(f"--data: there is no folder '{root}'")
        paths = images_below(root)
        if not paths:
            raise DataError(f"--data: '{root}' holds no images (.jpg, .png, ...)")
        kept = len(paths) if count is None else min(count, len(paths))
        self.paths = [paths[i * len(paths) // kept] for i in range(kept)]
        self.transforms, self.loader = transforms, loader

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = self.loader(self.paths[index])
        return torch.stack([transform(image) for transform in self.transforms])


def quality_of_run(
    run: str | Path,
    data: str | Path,
    encoder: str = "online",
    images: int = 2048,
    views: int = 8,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the encoder of a run on images without labels.

    RankMe and alpha-ReQ see each image as evaluation does; LiDAR sees `views` augmentations of
    each, made by the first pipeline of the run.

    Args:
        run: folder of the run, or a checkpoint with its args.json beside it.
        data: folder of images, in subfolders or not.
        encoder: `online` or `momentum`.
        images: at most so many images, spread over the folder.
        views: augmentations of each image.
        batch_size: images that are encoded at once.
        num_workers: processes that read images.
        device: where to encode.
        seed: of the augmentations.

    Returns:
        `rankme`, `lidar`, `alpha_req`, and `encoder`, `images`, `views`, `dimensions`, `epoch`.

    Raises:
        SoloError: the run or the data cannot be read.
    """
    backbone, args = load_run(run, encoder)
    dataset = args["data"]["dataset"]
    entries = args.get("augmentations") or []
    loader, _ = readers(**reading_of(args))
    plain = folder_transform(args)
    augment = build_transform_pipeline(dataset, OmegaConf.create(entries[0])) if entries else None
    model = backbone.eval().to(device)

    def features(transforms: list[Callable]) -> Tensor:
        torch.manual_seed(seed)
        items = ImagesOf(data, transforms, loader, images)
        batches = DataLoader(items, batch_size=batch_size, num_workers=num_workers)
        return torch.cat(list(_encoded(model, batches, device)))

    rows = features([plain])[:, 0]
    figures: dict[str, Any] = {"encoder": encoder, "rankme": float(rankme(rows))}
    if augment is not None and views > 1 and len(rows) > 1:
        figures["lidar"] = float(lidar(features([augment] * views)))
    figures["alpha_req"] = float(alpha_req(rows))
    return {**figures, "images": len(rows), "views": views, "dimensions": rows.shape[1]}


@torch.no_grad()
def _encoded(model: nn.Module, batches: DataLoader, device: str | torch.device) -> Iterator[Tensor]:
    """Features (N, views, F) of batches of images (N, views, 3, H, W)."""
    for x in batches:
        feats = model(x.flatten(0, 1).to(device))
        yield feats.float().cpu().view(*x.shape[:2], -1)
