# SPDX-License-Identifier: MIT
"""CPU time per training step of every method, against plain forward+backward of the same views.

    python3 benchmarks/zoo.py [--batch 32] [--steps 4] [--methods byol simclr ...]

Each method runs its CIFAR recipe (scripts/pretrain/cifar) on random 32x32 images in Lightning's
own loop: loss, heads, queues, momentum update, optimizer and logging are all in the step. The
reference is what no method can avoid: the recipe's encoder forward and backward on every online
view, and forward without gradient on every view of a momentum encoder. Reference and method are
measured in turn, in the same process, in seconds of CPU time of all its threads, so that other
programs do not count; the table shows medians and their ratio.

Above 1.25: MAE, whose decoder is most of its step, and NNSiam at small batches, which reads a
queue of 65,536 x 2,048 numbers (0.5 GB) once per step, whatever the batch.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from solo.args.pretrain import parse_cfg  # noqa: E402
from solo.methods import METHODS  # noqa: E402
from solo.methods.base import BaseMomentumMethod  # noqa: E402

RECIPES = ROOT / "scripts/pretrain/cifar"


class RandomViews(Dataset):
    """`n` samples of random crops of the given sides, made once."""

    def __init__(self, n: int, sides: list[int]):
        self.images = [torch.randn(n, 3, side, side) for side in sides]
        self.targets = [i % 10 for i in range(n)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int):
        return i, [view[i] for view in self.images], self.targets[i]


class StepTimes(pl.Callback):
    """CPU seconds from the start of a batch to the end of its step, and a reference beside each."""

    def __init__(self):
        self.steps: list[float] = []
        self.plain: list[float] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        """Time the reference on this batch, then start the clock of the step."""
        start = time.process_time()
        plain_step(module, batch[1])
        self.start = time.process_time()
        self.plain.append(self.start - start)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        """Stop the clock."""
        self.steps.append(time.process_time() - self.start)


def plain_step(module, views) -> None:
    """Forward and backward of the encoder on every view; leaves no gradient behind."""
    loss = torch.zeros(())
    for index, x in enumerate(views):
        momentum = isinstance(module, BaseMomentumMethod) and index < module.num_large_crops
        x = x.to(memory_format=torch.channels_last)
        mae = isinstance(module, METHODS["mae"])
        out = module.backbone(x, module.mask_ratio) if mae else None
        loss = loss + (module.backbone(x) if out is None else out[1]).sum()
        if momentum:
            with torch.no_grad():
                module.momentum_backbone(x)
    loss.backward()
    module.zero_grad(set_to_none=True)


def recipe_of(method: str):
    """The parsed CIFAR recipe of a method, for one CPU."""
    for file in sorted(RECIPES.glob("*.yaml")):
        with initialize_config_dir(str(RECIPES), version_base="1.2"):
            cfg = compose(file.stem, ["devices=[0]", "accelerator=cpu"])
        if cfg.method == method:
            return parse_cfg(cfg)
    raise SystemExit(f"no CIFAR recipe trains '{method}'")


def measure(method: str, batch: int, steps: int) -> tuple[float, float]:
    """Median seconds of a step and of the reference; the first step of each is not counted."""
    torch.manual_seed(0)
    cfg = recipe_of(method)
    # W-MSE whitens 128 at a time
    batch = max(batch, OmegaConf.select(cfg, "method_kwargs.whitening_size", default=0))
    cfg.optimizer.batch_size = batch
    model = METHODS[method](cfg).to(memory_format=torch.channels_last)
    sides = [view.crop_size for view in cfg.augmentations for _ in range(view.num_crops)]
    data = RandomViews(batch * (steps + 1), sides)
    times = StepTimes()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[times],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=batch, drop_last=True))
    return statistics.median(times.steps[1:]), statistics.median(times.plain[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [name for name in METHODS if name not in ("base", "linear")]
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=names, choices=names)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, batch {args.batch}, median of {args.steps} steps"
    )
    print(f"{'method':14s} {'step s':>8s} {'plain s':>8s} {'ratio':>6s}")
    for method in args.methods:
        step, plain = measure(method, args.batch, args.steps)
        print(f"{method:14s} {step:8.3f} {plain:8.3f} {step / plain:6.2f}", flush=True)


if __name__ == "__main__":
    main()
