# SPDX-License-Identifier: MIT
"""Training throughput of ResNet-18 at 32x32 through main_pretrain's own code, bf16.

    python benchmarks/gpu/throughput.py [--out benchmarks/results/gpu_throughput.json]

Paths: (a) `pil` the loader of solo-learn with 16 workers, (b) `resident` batched augmentation on
the device, (c) `compiled` the same with performance.compile. Each cell is measured twice: images/s
without any measurement inside, then the shares of the parts with performance.profile. The images
are noise in the size of CIFAR-10 (--cifar FOLDER takes the real ones): no figure depends on them.
Try it without a GPU:

    python benchmarks/gpu/throughput.py --tiny --out /tmp/throughput.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from PIL import Image
from results import ROOT, Results

from solo.programs import pretrain as program
from solo.programs.training import fit

GOAL = 25_000  # BYOL images/s on an H100; the roofline is 47,000
METHODS = ("byol", "simclr")
PATHS: dict[str, dict[str, Any]] = {
    "pil": {"data": {"format": "image_folder"}},
    "resident": {"data": {"format": "resident"}},
    "compiled": {"data": {"format": "resident"}, "performance": {"compile": True}},
}
RECIPES = ROOT / "scripts/pretrain/cifar"


class Rate(Callback):
    """Images per second between two steps, the device waited for at both.

    Args:
        first: step after which the clock starts.
        last: step after which it stops.
    """

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last
        self.marks: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Look at the clock twice."""
        if trainer.global_step in (self.first, self.last):
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self.marks.append(time.perf_counter())


def noise(folder: Path, n: int) -> Path:
    """A folder of n images of 32x32 in two classes."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
    for i in range(n):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[i % 2] / f"{i}.png")
    return folder


def configuration(method: str, batch: int, path: str, args: argparse.Namespace) -> Any:
    """The CIFAR recipe of `method`, shortened to --steps."""
    with initialize_config_dir(config_dir=str(RECIPES), version_base="1.2"):
        recipe = compose(method)
    OmegaConf.set_struct(recipe, False)
    changes: dict[str, Any] = {
        "data": {"dataset": "cifar10" if args.cifar else "custom", "num_workers": args.workers},
        "optimizer": {"batch_size": batch},
        "checkpoint": {"enabled": False, "dir": str(args.work / "models")},
        "wandb": {"enabled": False},
        "auto_resume": {"enabled": False},
        "precision": "32-true" if args.tiny else "bf16-mixed",
        "max_steps": args.steps,
        "devices": [0],
        "accelerator": "cpu" if args.tiny else "gpu",
        "strategy": None,
        "sync_batchnorm": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    if args.tiny:
        changes["backbone"] = {"kwargs": {"width": 4}}
    cfg = OmegaConf.merge(recipe, changes, PATHS[path])
    cfg.data.train_path = str(args.cifar or args.work / "images")
    cfg.data.val_path = None
    return cfg


def run(cfg: Any, callbacks: list[Callback]) -> Path:
    """Train as `main_pretrain.py` does, with further callbacks; the run's folder."""
    program.parse_cfg(cfg)
    logdir = Path(cfg.checkpoint.dir) / cfg.method
    trainer = fit(cfg, program.build_model(cfg), program.build_data(cfg), logdir, callbacks)
    return logdir / str(trainer.logger.version)


def measure(method: str, batch: int, path: str, args: argparse.Namespace) -> dict[str, Any]:
    """Images/s, then the share of each part."""
    rate = Rate(args.warm_up, args.steps)
    run(configuration(method, batch, path, args), [rate])
    seconds = rate.marks[1] - rate.marks[0]
    cfg = configuration(method, batch, path, args)
    OmegaConf.update(cfg, "performance.profile", True, force_add=True)
    profile = json.loads((run(cfg, []) / "profile.json").read_text(encoding="utf-8"))
    total = sum(profile["seconds"].values())
    shares = {part: round(value / total, 4) for part, value in profile["seconds"].items()}
    images = (args.steps - args.warm_up) * batch / seconds
    return {"images_per_second": round(images, 1), "shares_when_profiled": shares}


def main() -> None:
    """Measure every cell that is not in the file yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ROOT / "benchmarks/results/gpu_throughput.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--batches", nargs="*", type=int, default=[256, 1024])
    parser.add_argument("--paths", nargs="*", choices=PATHS, default=list(PATHS))
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--warm-up", type=int, default=40)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--cifar", type=Path, help="folder with CIFAR-10 as torchvision keeps it")
    parser.add_argument("--tiny", action="store_true", help="a try on the CPU")
    args = parser.parse_args()
    if args.tiny:
        args.batches, args.steps, args.warm_up, args.images, args.workers = [8], 6, 3, 32, 1
    results = Results(args.out)
    with tempfile.TemporaryDirectory() as work:
        args.work = Path(work)
        if args.cifar is None:
            noise(args.work / "images", args.images)
        for method in args.methods:
            for batch in args.batches:
                for path in args.paths:
                    name = f"{method} {batch} {path}"
                    if name not in results:
                        results.add(name, measure(method, batch, path, args))
    print(f"{'cell':28}{'images/s':>12}  largest parts")
    for name, cell in results.cells.items():
        parts = sorted(cell["shares_when_profiled"].items(), key=lambda item: -item[1])[:4]
        text = ", ".join(f"{part} {share:.0%}" for part, share in parts)
        print(f"{name:28}{cell['images_per_second']:12,.0f}  {text}")
    best = max((c["images_per_second"] for n, c in results.cells.items() if "byol" in n), default=0)
    print(f"best BYOL: {best:,.0f} images/s ({best / GOAL:.0%} of the goal of {GOAL:,})")


if __name__ == "__main__":
    main()
