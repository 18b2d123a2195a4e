# SPDX-License-Identifier: MIT
"""What RankMe, LiDAR and alpha-ReQ cost per epoch of ResNet-18 on CIFAR-10.

    python3 benchmarks/quality_cost.py [--method byol] [--batch 64] [--steps 3]

The method's CIFAR recipe trains on random images; seconds of CPU time (one thread) of a training
step, times the steps of an epoch of 50,000 images, against those of one measurement with the
default settings, on features of the recipe's own dimensions.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.zoo import RandomViews, recipe_of  # noqa: E402
from solo.args.schema import Quality  # noqa: E402
from solo.methods import METHODS  # noqa: E402
from solo.quality.monitor import QualityMonitor  # noqa: E402

IMAGES = 50_000


def step_seconds(model: torch.nn.Module, batch: list, steps: int) -> float:
    """Median CPU seconds of forward, backward and optimizer step; the first one is not counted."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    seconds = []
    for _ in range(steps + 1):
        start = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        model.training_step(batch, 0).backward()
        optimizer.step()
        for pair in getattr(model, "momentum_pairs", ()):
            model.momentum_updater.update(*pair)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])


def measure_seconds(model: torch.nn.Module, rounds: int = 3) -> float:
    """Median CPU seconds of one measurement of all parts that the method has."""
    with torch.no_grad():
        out = model(torch.randn(4, 3, 32, 32))
    widths = {"backbone": out["feats"].shape[1]}
    if "z" in out:
        widths["projector"] = out["z"].shape[1]
    if hasattr(model, "momentum_backbone"):
        widths |= {f"momentum_{part}": width for part, width in widths.items()}
    seconds = []
    for _ in range(rounds):
        monitor = QualityMonitor(Quality.images)
        for part, width in widths.items():
            for view in range(2):
                monitor._kept[part, view].append(torch.randn(Quality.images, width))
        start = time.process_time()
        figures = monitor._measure()
        seconds.append(time.process_time() - start)
    print(f"parts: {widths}; {len(figures)} figures of {Quality.images} images, two views each")
    return statistics.median(seconds)


def main() -> None:
    """Print both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="byol")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # there is no trainer to log to
    torch.set_num_threads(1)
    cfg = recipe_of(args.method)
    cfg.optimizer.batch_size = args.batch
    torch.manual_seed(0)
    model = METHODS[args.method](cfg).to(memory_format=torch.channels_last)
    sides = [view.crop_size for view in cfg.augmentations for _ in range(view.num_crops)]
    data = RandomViews(args.batch, sides)
    batch = [torch.arange(args.batch), data.images, torch.tensor(data.targets)]
    step = step_seconds(model, batch, args.steps)
    epoch = step * math.floor(IMAGES / args.batch)
    cost = measure_seconds(model)
    print(
        f"{args.method}, {cfg.backbone.name}, batch {args.batch}, torch {torch.__version__}, "
        f"one thread: step {step:.2f} s, epoch of {IMAGES:,} images {epoch:.0f} s, "
        f"measurement {cost:.2f} s, {100 * cost / epoch:.3f} % of the epoch"
    )


if __name__ == "__main__":
    main()
