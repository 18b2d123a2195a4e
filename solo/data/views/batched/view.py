# SPDX-License-Identifier: MIT
"""Whole pipelines: one entry of `augmentations`, and all entries together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from solo.data.catalogue import pretrain_statistics
from solo.data.views.augmentation_keys import STRENGTHS, checked_augmentation
from solo.data.views.batched.colour import ColorJitter, Equalize, Grayscale, Solarize
from solo.data.views.batched.compiled import CompiledOrPlain
from solo.data.views.batched.crop import Flip, PaddedCrop, Resize, ResizedCrop
from solo.data.views.batched.filters import GaussianBlur, Rotation
from solo.data.views.batched.operation import TOP, Operation

# Float values per tensor of one chunk on the CPU: 2 MiB, measured as the best between the cost of
# a call and the cache of a core.
CHUNK_VALUES = 1 << 19


class BatchedView(nn.Module):
    """One view of every image of a batch, as `build_transform_pipeline` makes it of one image.

    Args:
        dataset: decides mean and standard deviation, see `solo.data.datasets.folders`.
        cfg: one entry of `augmentations`.

    Attributes:
        draws: uniform random numbers per image.

    Raises:
        ConfigError: the entry has an unknown key or a bad value.
    """

    def __init__(self, dataset: str, cfg: Mapping[str, Any]):
        super().__init__()
        entry = checked_augmentation(cfg)
        self.size = entry["crop_size"]
        self.flip_prob = entry["horizontal_flip"]["prob"]
        self.crop = _crop(entry)
        self.operations = nn.ModuleList(_operations(entry))
        # A mirrored crop is the same as a mirrored result, except that it turns the other way.
        self.flips_late = bool(self.flip_prob and entry["rotation"]["prob"])
        if self.flips_late:
            self.operations.append(Flip(self.flip_prob))
        self.draws = 1 + self.crop.draws + sum(op.draws for op in self.operations)
        mean, std = (torch.tensor(v)[:, None, None] for v in pretrain_statistics(dataset, entry))
        self.register_buffer("scale", 1 / (TOP * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """The random numbers of n images: (n, draws), on the generator's device."""
        return torch.rand([n, self.draws], generator=generator, device=generator.device)

    def forward(self, images: Tensor, u: Tensor) -> Tensor:
        """Make one view of every image of a batch.

        Args:
            images: (N, 3, H, W) uint8.
            u: (N, draws) from `draw`, on the same device.

        Returns:
            (N, 3, crop_size, crop_size) float32, normalised.
        """
        return (self.levels(images, u) * self.scale).add_(self.shift)

    def levels(self, images: Tensor, u: Tensor) -> Tensor:
        """`forward` before the normalisation: whole levels 0..255."""
        flip = u[:, 0] < self.flip_prob if self.flip_prob and not self.flips_late else None
        parts = u[:, 1:].split([self.crop.draws, *(op.draws for op in self.operations)], dim=1)
        x = self.crop(images, parts[0], flip)
        for operation, part in zip(self.operations, parts[1:], strict=True):
            x = operation(x, part)
        return x


class OneByOne:
    """A `BatchedView` of single images, for loaders whose images have other channels than three.

    Args:
        dataset: see `BatchedView`.
        cfg: one entry of `augmentations`.
    """

    def __init__(self, dataset: str, cfg: Mapping[str, Any]):
        self.view = BatchedView(dataset, cfg)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """An image (C, H, W) uint8 to a view (C, crop_size, crop_size)."""
        return self.view(image[None], torch.rand(1, self.view.draws))[0]

    def __repr__(self) -> str:
        return repr(self.view)


def _crop(entry: Mapping[str, Any]) -> Operation:
    size, rrc = entry["crop_size"], entry["rrc"]
    if "padding" in entry:
        return PaddedCrop(size, entry["padding"])
    if not rrc["enabled"]:
        return Resize(size)
    return ResizedCrop(size, (rrc["crop_min_scale"], rrc["crop_max_scale"]), rrc["fallback"])


def _operations(entry: Mapping[str, Any]) -> list[Operation]:
    """What follows the crop, in upstream's order, without what has no probability."""
    jitter = [entry["color_jitter"].get(strength) or 0.0 for strength in STRENGTHS]
    degrees = entry["rotation"].get("degrees") or 0.0
    kinds = {
        "rotation": lambda prob: Rotation(prob, degrees),
        "color_jitter": lambda prob: ColorJitter(prob, *jitter),
        "grayscale": Grayscale,
        "gaussian_blur": GaussianBlur,
        "solarization": Solarize,
        "equalization": Equalize,
    }
    return [make(entry[name]["prob"]) for name, make in kinds.items() if entry[name]["prob"]]


class BatchedViews(nn.Module):
    """All views of a batch, those of one pipeline after the other.

    Args:
        pipelines: one `BatchedView` per entry of `augmentations`.
        num_crops: how many views of each.
        compiled: compile them with `torch.compile`, or fall back with one warning.
    """

    def __init__(
        self, pipelines: Sequence[BatchedView], num_crops: Sequence[int], compiled: bool = False
    ):
        super().__init__()
        self.pipelines, self.num_crops = nn.ModuleList(pipelines), list(num_crops)
        self._run = [
            CompiledOrPlain(view, "augmentation") if compiled else view for view in pipelines
        ]

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Views of images (N, 3, H, W) uint8, drawn from `generator` on the same device."""
        views = []
        for pipeline, run, count in zip(self.pipelines, self._run, self.num_crops, strict=True):
            for _ in range(count):
                u = pipeline.draw(len(images), generator)
                views.append(in_chunks(run, images, u, 3 * pipeline.size**2))
        return views


def in_chunks(run: Callable[..., Tensor], images: Tensor, u: Tensor, values: int) -> Tensor:
    """`run(images, u)`; on a CPU in parts that stay in its cache.

    Args:
        run: treats every image by itself.
        images: (N, ...).
        u: (N, draws).
        values: how many each image has while `run` works on it.
    """
    if images.device.type != "cpu":
        return run(images, u)
    size = _chunk(len(images), values)
    done = [run(*part) for part in zip(images.split(size), u.split(size), strict=True)]
    return done[0] if len(done) == 1 else torch.cat(done)


def _chunk(n: int, values: int) -> int:
    """Images per chunk: the largest divisor of n that fits, so that all chunks are alike."""
    most = max(1, CHUNK_VALUES // values)
    best = max(size for size in range(1, min(n, most) + 1) if n % size == 0)
    return best if 4 * best >= min(n, most) else min(n, most)


def build_views(
    dataset: str, entries: Sequence[Mapping[str, Any]], compiled: bool = False
) -> BatchedViews:
    """Build the batched views that the key `augmentations` describes.

    Args:
        dataset: name, for mean and standard deviation.
        entries: the pipelines, each with `num_crops`.
        compiled: see `BatchedViews`.

    Raises:
        ConfigError: an entry has an unknown key or a bad value.
    """
    pipelines = [BatchedView(dataset, entry) for entry in entries]
    return BatchedViews(pipelines, [entry["num_crops"] for entry in entries], compiled)
