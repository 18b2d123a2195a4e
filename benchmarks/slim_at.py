# SPDX-License-Identifier: MIT
"""Seconds per training step of BYOL before and after `sparse.slim_at`: ResNet-18 at 32x32, CPU.

    python benchmarks/slim_at.py [--channels 0.7] [--batch 16] [--steps 6] [--threads 1]
        [--width 64]

One run of Lightning's trainer on random views: dense while channels are being chosen, masked after
the ramp, and from `slim_at` on with what is left of both encoders. Medians of CPU seconds (of the
wall clock with several threads) over the masked and the slim steps. Batch norm takes its statistics
from the last batch, where a real run waits some 200 steps until those of empty channels are zero.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch
from lightning.pytorch import Callback, Trainer
from step import configuration
from torch import nn
from torch.utils.data import DataLoader

from solo.programs.pretrain import build_model
from sparse_ext import sparsify

CHOOSING = 3  # steps until the masks are what they will be


class Clock(Callback):
    """When each step ended, its loss and the parameters of the encoder that it trained."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.sizes: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, module: nn.Module, *args: object) -> None:
        """The end of one step is the start of the next."""
        one = torch.get_num_threads() == 1
        self.ends.append(time.process_time() if one else time.perf_counter())
        self.sizes.append(sum(p.numel() for p in module.backbone.parameters()))

    def seconds(self, first: int, last: int) -> float:
        """Median of the steps from `first` to `last`, counted from 0."""
        steps = range(first, last + 1)
        return statistics.median(self.ends[i] - self.ends[i - 1] for i in steps)


def main() -> None:
    """Train, and print the two figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--channels", type=float, default=0.7, help="share of them that goes")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6, help="to measure, masked and slim each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=64, help="of ResNet-18")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    slim_at = CHOOSING + 1 + args.steps
    total = slim_at + 1 + args.steps
    model = build_model(configuration(args.batch, {}, "sgd", args.width))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    section = {"name": "gmp", "granularity": "filter", "coupled": True, "final": args.channels}
    ramp = {"update_period": 1, "ramp_end": CHOOSING / total, "slim_at": slim_at}
    sparsify(model, {**section, **ramp})
    views = [torch.randn(args.batch, 3, 32, 32) for _ in range(2)]
    batch = [torch.arange(args.batch), views, torch.randint(0, 10, (args.batch,))]
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader([batch] * total, batch_size=None))
    masked = clock.seconds(slim_at - args.steps, slim_at - 1)
    slim = clock.seconds(slim_at + 1, total - 1)
    print(
        f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}, BYOL, ", end=""
    )
    print(f"ResNet-18, batch {args.batch}, SGD")
    print(f"masked: {1e3 * masked:8.1f} ms per step, {clock.sizes[slim_at - 1]:,} parameters")
    print(f"slim:   {1e3 * slim:8.1f} ms per step, {clock.sizes[-1]:,} parameters")
    print(f"{masked / slim:.2f} times faster, projector, predictor and both encoders included")


if __name__ == "__main__":
    main()
