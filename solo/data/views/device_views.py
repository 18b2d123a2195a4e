# SPDX-License-Identifier: MIT
"""`data.augment: device`: workers decode and crop, everything after the crop is done in batches.

For large images that do not fit in memory. A worker gives each view's crop as bytes and the random
numbers of its colours; so what is drawn for an image depends on seed, epoch and image alone, as in
the ordinary loaders, and four times fewer bytes travel than with finished views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import functional as TF

from solo.data.views.batched import BatchedView
from solo.data.views.batched.compiled import CompiledOrPlain
from solo.data.views.batched.crop import mirrored
from solo.data.views.batched.operation import Operation, change_chosen
from solo.data.views.batched.view import in_chunks
from solo.data.views.tensor_crops import tensor_crop_of
from solo.monitoring.profiling import AUGMENTATION, section


class Crop(NamedTuple):
    """What a worker makes of a view, or of one view of a batch.

    Attributes:
        image: (3, size, size) or (N, 3, size, size) uint8.
        draws: (K,) or (N, K) uniform numbers for the operations that follow.
    """

    image: Tensor
    draws: Tensor


class Cropped(Operation):
    """Takes the place of the crop where that is done: converts, and mirrors."""

    draws = 0

    def forward(self, images: Tensor, u: Tensor, flip: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) uint8 as floats; `flip` (N,) mirrors."""
        x = images.float()
        return x if flip is None else change_chosen(flip, mirrored, x)


class DeviceView(BatchedView):
    """One entry of `augmentations`, split in what a worker does and what the device does.

    Args:
        dataset: decides mean and standard deviation.
        cfg: the entry.
    """

    def __init__(self, dataset: str, cfg: Mapping[str, Any]):
        super().__init__(dataset, cfg)
        self.draws -= self.crop.draws
        self.crop = Cropped()
        self.worker_crop = tensor_crop_of(cfg)

    def cut(self, image: Tensor) -> Crop:
        """The worker's part for one view of an image (3, H, W) uint8."""
        return Crop(self.worker_crop(image), torch.rand(self.draws))


class WorkerCrops:
    """Transform of the workers: all crops of an image, those of one entry after the other.

    Takes (3, H, W) uint8, as `solo.data.datasets.images.read_pixels` gives it, or a PIL image.
    """

    def __init__(self, views: Sequence[DeviceView], num_crops: Sequence[int]):
        self.views, self.num_crops = views, num_crops

    def __call__(self, image: Image.Image | Tensor) -> list[Crop]:
        if not isinstance(image, Tensor):
            image = TF.pil_to_tensor(image)
        pairs = zip(self.views, self.num_crops, strict=True)
        return [view.cut(image) for view, count in pairs for _ in range(count)]

    def __repr__(self) -> str:
        crops = [f"{n} x {v.worker_crop}" for v, n in zip(self.views, self.num_crops, strict=True)]
        return f"in workers: {crops}, then batched: {list(self.views)}"


class DeviceViews(nn.Module):
    """Finishes the crops that loader workers cut: colours and blur, on the training device.

    Args:
        dataset: decides mean and standard deviation.
        entries: of `augmentations`, each with `num_crops`.
        compiled: see `solo.data.views.batched.BatchedViews`.

    Raises:
        ConfigError: an entry has an unknown key or a bad value.
    """

    def __init__(self, dataset: str, entries: Sequence[Mapping[str, Any]], compiled: bool = False):
        super().__init__()
        self.pipelines = nn.ModuleList(DeviceView(dataset, entry) for entry in entries)
        self.num_crops = [entry["num_crops"] for entry in entries]
        self._run = [CompiledOrPlain(v, "augmentation") if compiled else v for v in self.pipelines]

    def transform(self) -> WorkerCrops:
        """What the workers apply to each PIL image."""
        return WorkerCrops(list(self.pipelines), self.num_crops)  # type: ignore[arg-type]

    @torch.no_grad()
    def forward(self, crops: Sequence[Crop]) -> list[Tensor]:
        """Views (N, 3, size, size), normalised, of the crops of a batch."""
        runs = [run for run, n in zip(self._run, self.num_crops, strict=True) for _ in range(n)]
        return [
            in_chunks(run, *crop, crop.image[0].numel())
            for run, crop in zip(runs, crops, strict=True)
        ]


class DeviceData(LightningDataModule):
    """Loaders whose training batches get their colours on the device.

    Args:
        train: batches `[indexes, [Crop, ...], targets]`.
        views: finishes them.
        val: validation images, None where there are none.
    """

    def __init__(self, train: DataLoader, views: DeviceViews, val: DataLoader | None = None):
        super().__init__()
        self.train, self.views = train, views
        if val is not None:  # Lightning validates where there is such a method
            self.val_dataloader = lambda: val

    def setup(self, stage: str | None = None) -> None:
        """The numbers that the colours need move to the device of this process."""
        self.views.to(self.trainer.strategy.root_device)

    def train_dataloader(self) -> DataLoader:
        """The loader of training crops, whose views are finished on the device."""
        return self.train

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Crops to views; validation batches stay as they are."""
        if len(batch) != 3 or not isinstance(batch[1][0], Crop):
            return batch
        with section(AUGMENTATION):
            return [batch[0], self.views(batch[1]), batch[2]]
