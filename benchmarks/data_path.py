# SPDX-License-Identifier: MIT
"""End to end: BYOL on ResNet-18 with views from Pillow workers and with resident batched views.

    python benchmarks/data_path.py [--steps 6] [--batch 64] [--threads 2] [--width 64]
        [--accelerator cpu] [--workers 0 2] [--compile] [--cpu-time]

Runs the real method through the trainer on the embedded 32x32 images with CIFAR's asymmetric
augmentation, once per way to load them, and prints per step: seconds, images/s and the share of
the time in which the step waited for its batch (for resident data that is all of the augmentation).
The first step of each run, which starts workers and compilers, does not count. On a machine that
others use, too, `--cpu-time` counts what this process computes, with one thread and no workers.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from solo.args.pretrain import parse_cfg
from solo.programs.pretrain import build_data, build_model

AUGMENTATION = "scripts/pretrain/cifar/augmentations/asymmetric.yaml"
ROOT = Path(__file__).parents[1]


class StepClock(Callback):
    """Seconds of each step, and of the wait for its batch."""

    def __init__(self, cpu_time: bool) -> None:
        self.steps: list[float] = []
        self.waits: list[float] = []
        self._clock = time.process_time if cpu_time else time.perf_counter

    def _now(self, trainer: Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        return self._clock()

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """The wait for the first batch begins."""
        self._end = self._now(trainer)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """The batch is here."""
        self._wait = self._now(trainer) - self._end

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """The step is over."""
        now = self._now(trainer)
        self.waits.append(self._wait)
        self.steps.append(now - self._end)
        self._end = now


def config(args: argparse.Namespace, data_format: str, workers: int):
    """BYOL as the CIFAR recipe has it, on the embedded images."""
    return OmegaConf.create(
        {
            "name": "data-path",
            "method": "byol",
            "method_kwargs": {
                "proj_hidden_dim": 4096,
                "proj_output_dim": 256,
                "pred_hidden_dim": 4096,
            },
            "momentum": {"base_tau": 0.99, "final_tau": 1.0},
            "backbone": {"name": "resnet18", "kwargs": {"width": args.width}},
            "data": {"dataset": "digits", "format": data_format, "num_workers": workers},
            "augmentations": yaml.safe_load((ROOT / AUGMENTATION).read_text()),
            "optimizer": {
                "name": "lars",
                "batch_size": args.batch,
                "lr": 1.0,
                "classifier_lr": 0.1,
                "weight_decay": 1e-5,
                "kwargs": {"clip_lr": True, "eta": 0.02, "exclude_bias_n_norm": True},
            },
            "scheduler": {"name": "warmup_cosine", "warmup_epochs": 1},
            "performance": {"compile": args.compile},
            "max_epochs": 1,
            "devices": 1,
            "accelerator": args.accelerator,
        }
    )


def measure(args: argparse.Namespace, data_format: str, workers: int) -> tuple[float, float]:
    """Median seconds of a step, and the share of all steps that was waiting."""
    cfg = config(args, data_format, workers)
    parse_cfg(cfg)
    seed_everything(cfg.seed, verbose=False)
    model, data, clock = build_model(cfg), build_data(cfg), StepClock(args.cpu_time)
    trainer = Trainer(
        accelerator=args.accelerator,
        devices=1,
        max_epochs=1,
        limit_train_batches=args.steps + 1,
        limit_val_batches=0,
        precision=args.precision,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if isinstance(data, tuple):
        trainer.fit(model, data[0])
    else:
        trainer.fit(model, datamodule=data)
    steps, waits = clock.steps[1:], clock.waits[1:]
    return statistics.median(steps), sum(waits) / sum(steps)


def main() -> None:
    """Measure each way in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    if args.cpu_time:
        args.threads, args.workers = 1, [0]
    torch.set_num_threads(args.threads)
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"BYOL, ResNet-18 of width {args.width} at 32x32, batch {args.batch}, {args.accelerator}")
    print(f"{'':28}{'s/step':>10}{'images/s':>10}{'data wait':>11}")
    ways = [(f"Pillow, {n} workers", "image_folder", n) for n in args.workers]
    for name, data_format, workers in [*ways, ("resident, batched", "resident", 0)]:
        seconds, share = measure(args, data_format, workers)
        print(f"{name:28}{seconds:10.3f}{args.batch / seconds:10.1f}{share:11.2%}", flush=True)


if __name__ == "__main__":
    main()
