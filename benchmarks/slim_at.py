# SPDX-License-Identifier: MIT
"""Seconds per training step of BYOL before and after `sparse.slim_at`: ResNet-18 at 32x32, CPU.

    python benchmarks/slim_at.py [--channels 0.7] [--batch 16] [--steps 6] [--threads 1]
        [--width 64]

One run of Lightning's trainer on random views: dense while channels are being chosen, masked after
the ramp, and from `slim_at` on with what is left of both encoders. Medians of CPU seconds (of the
wall clock with several threads) and of peak memory over the masked and the slim steps; memory is
that of the process above what it took before the model was built (Linux). Slimming itself, which
this run looks into before every step, is left out. Batch norm takes its statistics from the last
batch, where a real run waits some 200 steps until those of empty channels are zero.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import statistics
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from step import configuration
from torch import nn
from torch.utils.data import DataLoader

from solo.programs.pretrain import build_model
from sparse_ext import sparsify

CHOOSING = 3  # steps until the masks are what they will be


class Clock(Callback):
    """How long each step took, its memory and the parameters of the encoder that it trained.

    Args:
        phases: steps from which on freed memory does not count any more.
    """

    def __init__(self, phases: tuple[int, ...]) -> None:
        self.phases = phases
        self.started = 0.0
        self.times: list[float] = []
        self.sizes: list[int] = []
        self.peaks: list[float] = []
        self.floor = megabytes("VmRSS")

    def on_train_batch_start(self, *args: object) -> None:
        """Behind slimming. The peak is that of a step, not of the run; Linux only."""
        if len(self.times) in self.phases:
            release_memory()
        Path("/proc/self/clear_refs").write_text("5")
        self.started = now()

    def on_train_batch_end(self, trainer: Trainer, module: nn.Module, *args: object) -> None:
        """Note what the step took."""
        self.times.append(now() - self.started)
        self.sizes.append(sum(p.numel() for p in module.backbone.parameters()))
        self.peaks.append(megabytes("VmHWM") - self.floor)

    def seconds(self, first: int, last: int) -> float:
        """Median of the steps from `first` to `last`, counted from 0."""
        return statistics.median(self.times[first : last + 1])

    def memory(self, first: int, last: int) -> float:
        """Median of the peaks of the steps from `first` to `last`, in MB above the start."""
        return statistics.median(self.peaks[first : last + 1])


def now() -> float:
    """Seconds of the processor with one thread, of the wall clock with several."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def megabytes(key: str) -> float:
    """What Linux says of this process: `VmRSS` = memory now, `VmHWM` = at most since cleared."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 1024


def release_memory() -> None:
    """Give what is freed back to the system, so that it does not count."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def warm_up() -> None:
    """Load the kernels of torch before memory is looked at."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 8))
    net(torch.randn(2, 3, 8, 8)).square().mean().backward()


def main() -> None:
    """Train, and print time and memory of a step before and after."""
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
    warm_up()
    clock = Clock((slim_at - args.steps, slim_at + 1))
    model = build_model(configuration(args.batch, {}, "sgd", args.width))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    section = {"name": "gmp", "granularity": "filter", "coupled": True, "final": args.channels}
    ramp = {"update_period": 1, "ramp_end": CHOOSING / total, "slim_at": slim_at}
    sparsify(model, {**section, **ramp})
    views = [torch.randn(args.batch, 3, 32, 32) for _ in range(2)]
    batch = [torch.arange(args.batch), views, torch.randint(0, 10, (args.batch,))]
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
    ends = (slim_at - args.steps, slim_at - 1), (slim_at + 1, total - 1)
    (masked, slim), peaks = [clock.seconds(*e) for e in ends], [clock.memory(*e) for e in ends]
    print(
        f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}, BYOL, ", end=""
    )
    print(f"ResNet-18, batch {args.batch}, SGD")
    sizes = clock.sizes[slim_at - 1], clock.sizes[-1]
    for name, time_, peak, size in zip(
        ("masked", "slim"), (masked, slim), peaks, sizes, strict=True
    ):
        print(f"{name:7} {1e3 * time_:8.1f} ms per step, peak {peak:.0f} MB, {size:,} parameters")
    print(
        f"{masked / slim:.2f} times faster with {peaks[1] / peaks[0]:.2f} of the memory, "
        f"projector, predictor and both encoders included"
    )


if __name__ == "__main__":
    main()
