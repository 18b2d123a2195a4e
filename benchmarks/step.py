# SPDX-License-Identifier: MIT
"""One training step of BYOL, ResNet-18 at 32x32: plain against what `performance` and precision do.

    python benchmarks/step.py --batch 64 --steps 6

All variants train in turn in one process on the same random views, so that only the step is
measured. `plain` is float32 in contiguous layout with Lightning's own `log` in every step;
`default` is what a recipe gets; the others add one thing each.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from solo.monitoring.step_metrics import StepMetrics
from solo.programs.pretrain import build_model

ROUNDS = 3
VARIANTS = {
    "plain": {"performance": {"disable_channel_last": True}},
    "default": {},
    "bf16": {"precision": "bf16-mixed"},
    "bf16, compiled": {"precision": "bf16-mixed", "performance": {"compile": True}},
}


def configuration(batch: int, changes: dict, optimizer: str, width: int) -> OmegaConf:
    """BYOL's CIFAR recipe without its data."""
    base = {
        "name": "step",
        "method": "byol",
        "max_epochs": 1,
        "backbone": {"name": "resnet18", "kwargs": {"width": width} if width else {}},
        "method_kwargs": {"proj_hidden_dim": 4096, "proj_output_dim": 256, "pred_hidden_dim": 4096},
        "momentum": {"base_tau": 0.99, "final_tau": 1.0},
        "data": {
            "dataset": "cifar10",
            "num_classes": 10,
            "num_large_crops": 2,
            "num_small_crops": 0,
        },
        "optimizer": {
            "name": optimizer,
            "batch_size": batch,
            "lr": 0.1,
            "weight_decay": 1e-5,
            "classifier_lr": 0.1,
            "kwargs": {"eta": 0.02, "clip_lr": True, "exclude_bias_n_norm": True}
            if optimizer == "lars"
            else {},
        },
        "scheduler": {"name": "none"},
    }
    return OmegaConf.merge(base, {"performance": changes.get("performance", {})})


class Clock(Callback):
    """Seconds of each step: CPU time, or wall time on a GPU, which is waited for."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args) -> None:
        """The end of one step is the start of the next."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            self.times.append(time.perf_counter())
        else:
            self.times.append(time.process_time())

    def seconds(self, skipped: int) -> list[float]:
        """Of every step but the first ones."""
        pairs = zip(self.times[skipped:], self.times[skipped + 1 :], strict=False)
        return [end - start for start, end in pairs]


def measure(name: str, args: argparse.Namespace) -> float:
    """Median seconds of a step of one variant."""
    changes = VARIANTS[name]
    torch.manual_seed(0)
    model = build_model(configuration(args.batch, changes, args.optimizer, args.width))
    views = [torch.randn(args.batch, 3, args.size, args.size) for _ in range(2)]
    batch = [torch.arange(args.batch), views, torch.randint(0, 10, (args.batch,))]
    clock, ours = Clock(), StepMetrics.log
    trainer = Trainer(
        accelerator=args.device,
        devices=1,
        max_epochs=1,
        precision=changes.get("precision", "32-true"),
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if name == "plain":
        StepMetrics.log = pl.LightningModule.log
    try:
        steps = args.steps + args.warm_up
        trainer.fit(model, DataLoader([batch] * steps, batch_size=None))
    finally:
        StepMetrics.log = ours
    return statistics.median(clock.seconds(args.warm_up - 1))


def main() -> None:
    """Measure all variants in turn, print the best round of each and its ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=int, default=0, help="of ResNet-18; 0 = 64")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--optimizer", default="lars", choices=["lars", "sgd", "adamw"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--skip-compile", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = [name for name in VARIANTS if not (args.skip_compile and "compiled" in name)]
    best = dict.fromkeys(names, float("inf"))
    for _ in range(args.rounds):
        for name in names:
            best[name] = min(best[name], measure(name, args))
    print(
        f"BYOL ResNet-18 at {args.size}x{args.size}, batch {args.batch}, {args.optimizer}, "
        f"{args.device}, {torch.get_num_threads()} threads"
    )
    print(f"{platform.machine()}, torch {torch.__version__}; best median of {args.rounds} rounds")
    for name, seconds in best.items():
        rate = args.batch / seconds
        ratio = best["plain"] / seconds
        print(f"{name:16}{1000 * seconds:10.1f} ms/step{rate:10,.1f} images/s{ratio:8.2f}x")


if __name__ == "__main__":
    main()
