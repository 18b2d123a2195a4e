# SPDX-License-Identifier: MIT
"""Two BYOL views at 224 from JPEGs, source images per second and core: Pillow per sample against
crops in workers with batched colours (`data.augment=device`).

    python benchmarks/imagenet_views.py FOLDER_OF_JPEGS

Everything runs in this process on one thread. With a GPU the second part of `data.augment=device`
leaves the CPU altogether; the row "of which in workers" is what a core then has to do.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from torch.utils.data import default_collate

from solo.data.datasets.images import read_image, read_pixels
from solo.data.pretrain_dataloader import build_transform_pipeline, prepare_n_crop_transform
from solo.data.views.device_views import DeviceViews

RECIPE = (
    Path(__file__).resolve().parents[1] / "scripts/pretrain/imagenet/augmentations/asymmetric.yaml"
)
ROUNDS = 3
ENDINGS = {".jpg", ".jpeg", ".png"}


def per_sample(entries: list, paths: list[Path]) -> None:
    """`data.augment=workers`: views of every image by Pillow, then the batch."""
    pipelines = [build_transform_pipeline("imagenet", entry) for entry in entries]
    transform = prepare_n_crop_transform(pipelines, [entry["num_crops"] for entry in entries])
    default_collate([transform(read_image(path)) for path in paths])


def in_workers(entries: list, paths: list[Path], views: DeviceViews) -> list:
    """What the workers of `data.augment=device` do."""
    transform = views.transform()
    return default_collate([transform(read_pixels(path)) for path in paths])


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=64, help="per batch")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    entries = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    paths = sorted(p for p in args.folder.rglob("*") if p.suffix.lower() in ENDINGS)[: args.images]
    views = DeviceViews("imagenet", entries, args.compile)
    crops = in_workers(entries, paths, views)
    ways: dict[str, Callable[[], object]] = {
        "decoding, Pillow": lambda: [read_image(path) for path in paths],
        "decoding, torchvision": lambda: [read_pixels(path) for path in paths],
        "Pillow per sample": lambda: per_sample(entries, paths),
        "batched colours": lambda: views(in_workers(entries, paths, views)),
        "of which in workers": lambda: in_workers(entries, paths, views),
        "of which batched": lambda: views(crops),
    }
    best = dict.fromkeys(ways, float("inf"))
    for way in ways.values():
        way()
    for _ in range(args.rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            best[name] = min(best[name], time.process_time() - start)
    print(f"2 views at 224 of {len(paths)} images, one thread, CPU time, best of {args.rounds}")
    print(f"{platform.machine()}, torch {torch.__version__}")
    for name, seconds in best.items():
        ratio = best["Pillow per sample"] / seconds
        print(f"{name:22}{len(paths) / seconds:10,.1f} images/s{ratio:8.2f}x")


if __name__ == "__main__":
    main()
